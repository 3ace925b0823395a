"""The report stable diffusion."""
