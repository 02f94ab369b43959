"""Faults put into the commands, one file operation after the other: `make faults`, a sample of them in the tests."""
