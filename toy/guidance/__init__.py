"""Guidance on the published construction: its data and rewards, and one pass in closed form."""
