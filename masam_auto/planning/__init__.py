"""Fingerprint to plan: one file a rule, with the reasons."""
