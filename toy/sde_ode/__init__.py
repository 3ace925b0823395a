"""Trained with a stochastic sampler, sampled with another: laws without Monte-Carlo error."""
