"""masam_auto: self-configuring medical image segmentation with MA-SAM."""

__version__ = "0.1.0"
