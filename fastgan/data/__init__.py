"""From a data set's name to batches on the device: loaders.py. Nothing heavy is imported here."""
