"""Where methods of fine-tuning converge to: fixed points by equations, and by the methods
themselves.
"""
