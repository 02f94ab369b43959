"""Segment images with trained models, on the images' original grids."""
