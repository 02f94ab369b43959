"""Converters of public data sets to the raw format, one file per data set."""
