"""What figures show."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes


def curves(axes: Axes) -> dict[str, tuple[list, list]]:
    """The curves of a panel that a legend names: their places and values."""
    return {
        str(line.get_label()): (
            np.asarray(line.get_xdata()).tolist(),
            np.asarray(line.get_ydata()).tolist(),
        )
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }
