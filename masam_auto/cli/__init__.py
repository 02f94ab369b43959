"""One short file a command: arguments in, one call of a stage, exit code out."""
