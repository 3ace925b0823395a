"""The report convergence."""
