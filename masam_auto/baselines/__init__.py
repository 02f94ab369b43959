"""Peers run on the same data and folds. Nothing outside the command line imports this room."""
