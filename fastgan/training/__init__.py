"""The training step: objectives, losses, penalties, augmentation, averages, and how a step is computed."""
