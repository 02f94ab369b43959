"""Predictions against references: scores, validation, selection."""
