"""The rehearsal of what is measured on an accelerator, on the CPU and small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sd_experiments.studies import gpu
from sd_experiments.studies.random_models import (
    stable_diffusion_35_medium,
    stable_diffusion_xl,
)
from socft import cli
from socft.records import read
from socft.report.rows import Rows
from socft.report.stable_diffusion.tables import gpu as gpu_table
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schemas import SD_GPU

# of controls of size one that are rounded to eight bits, summed over steps and entries of a latent
BFLOAT16 = 2.0**-8


def test_the_networks_have_the_published_sizes():
    """Numbers in the files of weights of XL's network and of that of 3.5 medium, whose places are
    stored beside its parameters.
    """
    with torch.device("meta"):
        xl, medium = stable_diffusion_xl(), stable_diffusion_35_medium()
    assert sum(p.numel() for p in xl.unet.parameters()) == 2_567_463_684
    stored = sum(p.numel() for p in medium.transformer.state_dict().values())
    assert 2 * stored == pytest.approx(4.939e9, rel=1e-3)


@pytest.mark.slow
def test_the_rehearsal_is_right_and_is_typeset(tmp_path: Path):
    """On the device it is compared with everything is equal; every network and estimator has its
    time and memory.
    """
    assert cli.main(["sd", "gpu", "--rehearse", "--out", str(tmp_path)]) == 0
    rows = Rows(tuple(read(tmp_path / "sd_gpu.jsonl")), studies=(SD_GPU,))
    chain, resumed = (
        rows.where(each).one() for each in (Metric.CHAIN_DIFFERENCE, Metric.RESUME_DIFFERENCE)
    )
    assert chain is not None
    assert resumed is not None
    assert (chain.value, resumed.value) == (0, 0)
    ratios = {r.setting["batch"]: r.value for r in rows.where(Metric.LOG_RATIO)}
    assert ratios.keys() == set(gpu.BATCHES)
    assert ratios[gpu.PATHS] == 0, "the calls are those that made the paths"
    assert max(ratios.values()) < BFLOAT16 * gpu.CELL.steps * 4 * 16 * 16
    found = {(r.problem, r.estimator) for r in rows.where(Metric.SECONDS)}
    assert found == {(name, method) for name in gpu.REHEARSED for method in gpu.FEW}
    assert all(r.value > 0 for r in rows.where(Metric.PEAK_MB))
    said = gpu_table(rows)
    assert all(name in said for name in ("small_flow", "adjoint matching", "DDPO"))
    assert "Not measured here" not in said
    assert gpu_table(Rows((), studies=(SD_GPU,))).startswith("Not measured here (`socft sd gpu`")


def test_what_the_time_is_not_enough_for_is_not_measured():
    assert gpu.gradient_steps("small", "cpu", ["adjoint matching"], -1.0) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_rehearsal_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["sd", "gpu", "--out", str(tmp_path)]) == 2
    said = "torch sees no GPU here; run the same on the CPU with --rehearse."
    assert said in capsys.readouterr().err
    assert cli.main(["sd", "gpu", "--minutes", "0", "--out", str(tmp_path)]) == 2
