"""The tests, a package: test modules and processes that they start import its helpers (`from tests import
raw_data`)."""
