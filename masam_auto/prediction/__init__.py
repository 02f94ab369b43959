"""Images to segmentations on their own grids."""
