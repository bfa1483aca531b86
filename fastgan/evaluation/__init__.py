"""Distances between generated and real images, each named after the features it compares."""
