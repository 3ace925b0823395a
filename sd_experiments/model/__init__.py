"""A latent diffusion model as a reference, and its low-rank layers as a policy."""
