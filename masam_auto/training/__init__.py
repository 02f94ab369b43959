"""Sampling, augmentation, loss, optimiser, and the loop."""
