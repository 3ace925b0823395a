"""The convergence study: its chains, and the forms of PI-FT."""
