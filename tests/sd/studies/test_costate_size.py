"""What makes costates large: continuations against exact laws, and the study as a whole."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from sd_experiments import config
from sd_experiments.commands import TINY
from sd_experiments.studies import costate_size
from sd_experiments.studies.costate_size import (
    PARTS,
    QUICK,
    directions,
    forks,
    limits,
    rank_correlation,
    run,
    spread_of_rewards,
    tasks,
)
from sd_experiments.studies.gradient_agreement import (
    agreement,
    alignment,
    gradients,
    jackknife,
    squared_mean,
)
from sd_experiments.studies.gradient_norm import PARTS as HALVES
from sd_experiments.studies.gradient_norm import gradient_norms
from sd_experiments.training.build import build
from sd_experiments.training.prompt_task import PromptTask
from socft.estimators.adjoint_matching import AdjointMatching
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.records import read
from socft.reference import AffineReference, MatrixDiffusion
from socft.report.rows import Rows
from socft.reward import FunctionReward
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schemas import SD_COSTATE_SIZE
from tests.support.sd import PROMPT, written
from toy.problems import benchmark

DIRECTION = torch.tensor([1.0, -2.0], dtype=torch.float64)


def linear() -> PromptTask:
    """A Gaussian chain with a linear reward: continuations from any state have a variance that does
    not depend on it.
    """
    reference = benchmark("lq-sde", d=2, steps=5).problem.reference
    problem = ControlProblem(reference, FunctionReward(lambda x: x @ DIRECTION), 1.0)
    return PromptTask("linear", problem, Uncontrolled(reference))


def deviation(task: PromptTask, start: int) -> float:
    """Exact, by the chain's own linear maps: sqrt(sum_k |B_k^T A_{k+1}^T ... A_{T-1}^T c|^2)."""
    reference, zero, unit = (
        task.problem.reference,
        torch.zeros(2, 2, dtype=torch.float64),
        torch.eye(2, dtype=torch.float64),
    )
    costate, variance = DIRECTION, 0.0
    for k in reversed(range(start, reference.steps)):
        pushed = reference.step(k, zero, unit) - reference.step(k, zero, zero)
        variance += float((pushed @ costate).square().sum())
        costate = (reference.mean(k, unit) - reference.mean(k, zero)) @ costate
    return variance**0.5


def test_continuations_have_the_exact_deviation_of_rewards():
    task, number = linear(), 4000
    states = torch.tensor([[0.0, 0.0], [3.0, -1.0]], dtype=torch.float64)
    expected = [deviation(task, k) for k in range(task.problem.steps)]
    assert expected == sorted(expected, reverse=True)
    for k, exact in enumerate(expected):
        found = spread_of_rewards(task, states, k, number)
        assert found.total.shape == (2,)
        assert float((found.total / exact - 1).abs().max()) < 4 / (2 * number) ** 0.5
        assert float(found.even.abs().max()) < 1e-12


def test_what_is_even_in_the_noise_is_told_apart_exactly():
    r"""One step of :math:`x + \xi` under :math:`a x^2 + b x` from x: the odd part is
    :math:`(2 a x + b) \xi`, the even one :math:`a \xi^2`, of standard deviation :math:`\sqrt2 a`.
    """
    reference = AffineReference(
        torch.ones(1, 1, 1, dtype=torch.float64),
        MatrixDiffusion(torch.ones(1, 1, 1, dtype=torch.float64)),
        torch.zeros(1, 1, dtype=torch.float64),
    )
    a, b, number = 0.7, -0.4, 20_000
    problem = ControlProblem(reference, FunctionReward(lambda x: a * x[:, 0] ** 2 + b * x[:, 0]), 1)
    task = PromptTask("quadratic", problem, Uncontrolled(reference))
    states = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    found = spread_of_rewards(task, states, 0, number)
    odd = (2 * a * states[:, 0] + b).abs()
    assert float((found.even / (2**0.5 * a) - 1).abs().max()) < 4 * (7 / 2 / number) ** 0.5
    total = (odd.square() + 2 * a**2).sqrt()
    assert float((found.total / total - 1).abs().max()) < 4 * (7 / 2 / number) ** 0.5


def test_rank_correlations_scatter_as_their_error_says():
    """Of normal pairs: mean (6 / pi) asin(rho / 2), and as much scatter as is told, within 4
    standard errors of either.
    """
    rho, n, draws = 0.6, 60, 400
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(draws, 2, n, generator=generator, dtype=torch.float64)
    found = torch.tensor(
        [rank_correlation(x, rho * x + (1 - rho**2) ** 0.5 * y) for x, y in z], dtype=torch.float64
    )
    values, errors = found.unbind(1)
    assert abs(float(values.mean()) - 6 / math.pi * math.asin(rho / 2)) < 0.02
    assert abs(float(values.std() / errors.mean()) - 1) < 4 / (2 * draws) ** 0.5


def test_nothing_is_undecided_at_the_end():
    task = linear()
    assert (
        float(
            spread_of_rewards(task, torch.ones(3, 2, dtype=torch.float64), task.problem.steps, 4)
            .total.abs()
            .max()
        )
        == 0
    )


def test_every_prompt_is_measured_alone_and_at_every_scale_of_guidance():
    settings = config.read_config(TINY)
    made = tasks(settings, QUICK)
    assert (
        len({task.name for task in made})
        == len(made)
        == len(settings.problem.prompts) * (4 + len(QUICK.guidance))
    )
    for task in made:
        parsed = config.parse_config(task.arguments["settings"])
        assert len(parsed.problem.prompts) == 1
        assert parsed.problem.prompts[0] in task.name


@pytest.fixture(scope="module")
def small(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of the random model and one prompt, with two steps and few paths."""
    file = written(model, tmp_path_factory.mktemp("costate") / "run")
    text = file.read_text()
    for long, short in {
        f'prompts = ["{PROMPT}", "a blue square"]': f'prompts = ["{PROMPT}"]',
        "\nsteps = 3": "\nsteps = 2",
        "trajectories = 4": "trajectories = 2",
        "micro_batch = 2": "micro_batch = 4",
        "passes = 2": "passes = 2\npaths = 4",
    }.items():
        assert text.count(long) == 1
        text = text.replace(long, short)
    file.write_text(text)
    return file


@pytest.fixture
def alone(small: Path) -> config.ExperimentConfig:
    """Its settings."""
    return config.read_config(small)


def tiny(prompt: str) -> config.ExperimentConfig:
    """The tiny configuration of one prompt, likewise."""
    settings = config.read_config(TINY)
    return dataclasses.replace(
        settings,
        problem=dataclasses.replace(settings.problem, prompts=(prompt,)),
        sampler=dataclasses.replace(settings.sampler, steps=2),
        batch=dataclasses.replace(settings.batch, trajectories=2, paths=4, loss_steps=2),
    )


@pytest.fixture(scope="module")
def measured(small: Path) -> Rows:
    """The study of this configuration."""
    return Rows(tuple(run(small, True, small.parent, workers=1)))


def test_top_and_rest_are_all_paths_and_the_top_has_larger_costates(
    alone: config.ExperimentConfig,
):
    found = Rows(tuple(forks(alone.plain(), 20, 2)))
    for k in range(alone.sampler.steps):
        seeds = [
            record.seeds
            for part in PARTS
            for record in found.where(Metric.UNDECIDED, step=k, part=part)
        ]
        assert seeds == [2, 18]
    largest = {
        part: max(record.value for record in found.where(Metric.ADJOINT, part=part))
        for part in PARTS
    }
    assert largest["top"] > largest["rest"]
    assert all(-1 <= record.value <= 1 for record in found.where(Metric.RANK_CORRELATION))


@pytest.mark.slow
def test_the_study_can_be_repeated(
    measured: Rows, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same noise gives the same numbers, and the file has them; again without what compares
    methods, by the same gradients as limits are.
    """
    some = [task for task in tasks(config.read_config(small), QUICK) if task.function != directions]
    monkeypatch.setattr(costate_size, "tasks", lambda *_: some)
    again = run(small, True, tmp_path, workers=1)
    first = [each for each in measured if "after" not in each.setting]
    values = [[(r.metric, dict(r.setting), r.value) for r in rows] for rows in (first, again)]
    assert values[0] == values[1] != []
    assert [r.value for r in read(small.parent / f"{SD_COSTATE_SIZE.name}.jsonl")] == [
        r.value for r in measured
    ]
    metrics = {
        "undecided",
        Metric.UNDECIDED_EVEN,
        "log_growth",
        "adjoint",
        "rank_correlation",
        Metric.RANK_CORRELATION_EVEN,
        Metric.AGREEMENT,
        Metric.FIDELITY,
        Metric.LIMITED,
        "reward",
        "accuracy",
    }
    assert {r.metric for r in measured} - {Metric.ALIGNMENT} == metrics


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([[1.0, 2.0], [2.0, 4.0], [0.5, 1.0]], 1.0),
        ([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 2.0]], 0.0),
        ([[1.0, 0.0], [5.0, 0.0], [-2.0, 0.0]], -1 / 3),
    ],
)
def test_agreement_is_the_mean_cosine_of_pairs(vectors: list[list[float]], expected: float):
    assert agreement(torch.tensor(vectors)) == pytest.approx(expected, abs=1e-15)


def test_agreement_of_noisy_vectors_and_its_error():
    """Of mean + unit noise in many dimensions: |mean|^2 / (|mean|^2 + dimensions); the error is the
    deviation over repetitions.
    """
    dims, number, repeated, generator = 2000, 6, 400, torch.Generator().manual_seed(0)
    mean = torch.zeros(dims, dtype=torch.float64)
    mean[0] = dims**0.5
    draws = (
        mean + torch.randn(number, dims, generator=generator, dtype=torch.float64)
        for _ in range(repeated)
    )
    values, errors = torch.tensor(
        [jackknife(agreement, each) for each in draws], dtype=torch.float64
    ).T
    assert float((values.mean() - 0.5).abs()) < 4 * float(values.std()) / repeated**0.5 + 1 / dims
    assert float(errors.square().mean().sqrt() / values.std()) == pytest.approx(
        1, abs=4 / (2 * repeated) ** 0.5 + 0.1
    )


def test_alignment_is_the_cosine_of_the_means_whatever_the_noise():
    """Two means at an angle of 60 degrees, one under noise of its own length, one under noise four
    times as long.
    """
    dims, number, repeated, generator = 400, 12, 200, torch.Generator().manual_seed(1)
    a, b = torch.zeros(2, dims, dtype=torch.float64)
    a[0], b[0], b[1] = 10.0, 1.0, 3**0.5

    def noisy(mean: torch.Tensor, size: float) -> torch.Tensor:
        noise = torch.randn(number, dims, generator=generator, dtype=torch.float64)
        return mean + size * float(mean.norm()) / dims**0.5 * noise

    found = [jackknife(alignment, noisy(a, 1.0), noisy(b, 4.0)) for _ in range(repeated)]
    values, errors = torch.tensor(found, dtype=torch.float64).T
    assert float((values.mean() - 0.5).abs()) < 0.02
    assert float(errors.median() / values.std()) == pytest.approx(1, abs=0.25)
    assert math.isnan(alignment(torch.eye(3), torch.eye(3)))


@pytest.mark.slow
def test_estimators_of_the_policy_gradient_are_the_same_at_the_pre_trained_model(measured: Rows):
    """Without a control, lean and full adjoints are equal, and so is the corrected one where the
    policy's costate corrects it.
    """
    found = measured.having("after")
    lean, full = (
        found.where(Metric.AGREEMENT, estimator=name, after=0).one()
        for name in ("adjoint matching", "PI-FT")
    )
    assert lean is not None
    assert full is not None
    assert lean.value == pytest.approx(full.value, rel=1e-4)
    assert {record.setting["after"] for record in found} == {0, 1}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.slow
def test_a_half_precision_network_gives_nearly_the_same_gradient(dtype: str):
    """With the learnt reward behind the decoder: only the network rounds, images and rewards are as
    precise as states.
    """
    settings = tiny("a green triangle")
    found = []
    for each in ("float32", dtype):
        half = dataclasses.replace(settings, model=dataclasses.replace(settings.model, dtype=each))
        mine, _ = next(gradients(build(half), AdjointMatching(), 1, 0))
        found.append(mine[0])
    assert float(torch.cosine_similarity(*found, dim=0)) > 0.9


@pytest.mark.slow
def test_a_lower_limit_scales_more_target_controls_and_the_first_is_none():
    found = Rows(tuple(limits(tiny("four circles").plain(), 3)))
    shares = [record.value for record in found.where(Metric.LIMITED)]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[-1]
    assert found.where(Metric.FIDELITY, limit=None).records[0].value == pytest.approx(1, abs=1e-12)
    assert all(
        record.value < 1
        for record in found.where(Metric.FIDELITY)
        if record.setting["limit"] is not None
    )


def test_the_squared_mean_has_no_bias_by_noise():
    """Unlike the square of the mean of the batches, whose bias is the variance over their
    number.
    """
    generator, mean = (
        torch.Generator().manual_seed(0),
        torch.tensor([0.3, -0.4], dtype=torch.float64),
    )
    draws = [
        mean + torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(4000)
    ]
    found, biased = (
        torch.tensor([measure(each) for each in draws])
        for measure in (squared_mean, square_of_mean)
    )
    assert abs(float(found.mean()) - 0.25) < 4 * float(found.std()) / len(draws) ** 0.5
    assert abs(float(biased.mean()) - 0.25 - 2 / 5) < 4 * float(biased.std()) / len(draws) ** 0.5


def square_of_mean(gradients: torch.Tensor) -> float:
    return float(gradients.mean(0).square().sum())


@pytest.mark.slow
def test_descent_measures_before_halfway_and_after(alone: config.ExperimentConfig):
    """The run's own trainer, at its own steps; a batch has as much as its mean and its noise."""
    settings = dataclasses.replace(
        alone,
        run=dataclasses.replace(alone.run, steps=4),
        estimator=config.EstimatorConfig("full adjoint"),
    )
    found = Rows(tuple(gradient_norms("s", settings.plain(), 3)))
    assert (
        [record.setting["step"] for record in found.where(Metric.GRADIENT_SQUARED)]
        == [round(part * 4) for part in HALVES]
        == [0, 2, 4]
    )
    experiment = build(settings)
    start, _ = next(
        gradients(experiment, experiment.estimator, 3, 3, (settings.batch.target_clip,))
    )
    first = found.where(Metric.MEAN_GRADIENT_SQUARED, part=0.0).one()
    assert first is not None
    assert math.isclose(first.value, squared_mean(start), rel_tol=1e-6)
    for metric in (Metric.MEAN_GRADIENT_SQUARED, Metric.GRADIENT_SQUARED):
        assert len({record.value for record in found.where(metric)}) == 3
