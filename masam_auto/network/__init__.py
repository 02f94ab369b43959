"""MA-SAM: Segment Anything's image encoder over windows of slices, adapted, with mask decoders."""
