"""Names of the pictures that a reproduction keeps and its report shows."""

from __future__ import annotations

import re


def picture_of(method: str, prompt: str, beta: float) -> str:
    """File name of the pictures of one run."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{method} {prompt} {beta:g}".lower()) + ".png"
