"""The report gradient variance."""
