"""Samples and functions of the costate, the gradient of the value function: what lies below the
estimators.
"""
