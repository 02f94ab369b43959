"""Trained models on disk: checkpoints, SAM weights, archives, model cards."""
