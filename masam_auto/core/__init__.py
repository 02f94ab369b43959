"""The project's vocabulary: pure types and rules. Imports no torch and opens no image."""
