"""Arrays in, arrays out: reading, cropping, normalising, resampling, storing and measuring images."""
