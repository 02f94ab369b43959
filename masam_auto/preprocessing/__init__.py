"""Verify, measure and preprocess a data set."""
