"""The report guidance."""
