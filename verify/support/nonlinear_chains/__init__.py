"""Nonlinear chains with quadrature truth, on which estimators are held to their statements."""
