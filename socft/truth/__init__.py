"""Exact solutions: linear-quadratic in any dimension, quadrature in one and two, separable
rotations, mixtures in closed form.
"""
