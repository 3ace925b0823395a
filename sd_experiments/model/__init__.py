"""A latent diffusion model as a reference, and its low-rank layers as a policy."""

import logging


def _torchvision_is_not_needed(record: logging.LogRecord) -> bool:
    """Drop transformers' advice to install torchvision, which nothing here uses and a CPU build of
    torch cannot load.
    """
    return "requires torchvision (not installed)" not in record.getMessage()


logging.getLogger("transformers.utils.import_utils").addFilter(_torchvision_is_not_needed)
