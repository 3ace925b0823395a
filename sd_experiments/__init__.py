"""The estimators of `socft` on Stable Diffusion, and a Stable Diffusion small enough for a core."""

from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
"""Configurations that come along."""
