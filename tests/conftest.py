"""Every test runs on one thread and sees the same examples each time."""

from __future__ import annotations

import signal

import hypothesis
import torch
from jaxtyping import install_import_hook

import tests.support.shapes

install_import_hook(["socft"], "tests.support.shapes.typechecked")

torch.set_num_threads(1)
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # a shell's background job: processes that tests interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("socft", derandomize=True, deadline=None)
hypothesis.settings.load_profile("socft")
