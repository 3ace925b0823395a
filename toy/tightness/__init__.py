"""How tight the bounds are: a search over families of instances for the largest ratios."""
