"""Functions fitted to samples."""
