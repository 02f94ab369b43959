"""MA-SAM: Segment Anything's image encoder, adapted to windows of slices, with mask decoders."""
