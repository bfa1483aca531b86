"""fastgan: from a folder of images to a one-step image generator."""

__version__ = "0.1.0"
