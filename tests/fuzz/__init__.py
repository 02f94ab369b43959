"""Every reader given damaged and hostile files: `make fuzz` for minutes, a few hundred files in the tests."""
