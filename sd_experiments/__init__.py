"""The estimators of `socft` on Stable Diffusion, and a Stable Diffusion small enough for one core."""

import logging
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
"""Configurations that come along."""


def _torchvision_is_not_needed(record: logging.LogRecord) -> bool:
    """Drop transformers' advice to install torchvision, which nothing here uses and a CPU build of
    torch cannot load.
    """
    return "requires torchvision (not installed)" not in record.getMessage()


logging.getLogger("transformers.utils.import_utils").addFilter(_torchvision_is_not_needed)
