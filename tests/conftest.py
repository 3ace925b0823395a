"""Every test runs on one thread and sees the same examples each time."""

from __future__ import annotations

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("socft", derandomize=True, deadline=None)
hypothesis.settings.load_profile("socft")
