"""Training at an equal budget: problems, methods and what is measured on the way."""
