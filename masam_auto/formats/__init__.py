"""Files: volumes, pictures, DICOM, videos, boxes, probabilities, preprocessed arrays."""
