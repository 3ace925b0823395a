"""Methods for flow models at an equal budget: what each proposes, and what training makes of it."""
