"""Gradient guidance as a control: policies, Algorithms 1 and 2 of arXiv 2404.14743, and data on
subspaces and spheres.
"""
