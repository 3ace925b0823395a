"""The reproduction's runs on a small random model: equal budgets, equal noise, and the same records
after an interruption.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from sd_experiments import CONFIGS
from sd_experiments.studies import gradient_agreement
from sd_experiments.studies.reproduce import comparison, results, runs, scales
from sd_experiments.studies.reproduce import tasks as reproduction
from sd_experiments.studies.reproduce.comparison import (
    best_rate,
    compare,
    compared,
    pilot_tasks,
    training_tasks,
)
from sd_experiments.studies.reproduce.scales import (
    SCALES,
    ComparisonProtocol,
    FineTuningMethod,
    ReproductionScale,
    method_config,
)
from sd_experiments.studies.reproduce.tasks import REGRESSING, reproduce, tasks
from sd_experiments.training.build import build, instantiate
from socft.checks import InvalidProblem
from socft.estimators.catalogue import ANYWHERE
from socft.estimators.full_adjoint import FullAdjoint
from socft.records import Record, encode, read
from socft.report.rows import Rows
from socft.report.stable_diffusion.report import report
from socft.report.stable_diffusion.tables import ahead_at_the_best_rate, ahead_in_trainings
from socft.study.comparison import picture_of
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from tests.support.sd import PROMPT, written

STILL = 1e-30
"""A learning rate that moves nothing."""
FAST = 0.1
"""One after which paths say little about the policy: their weights have an effective sample size of
less than half their number.
"""


@pytest.fixture(scope="module")
def shared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, and with the runs of all tests: one that several ask for is
    trained once.
    """
    folder = tmp_path_factory.mktemp("reproduce")
    text = written(model, folder / "run").read_text()
    both = f'prompts = ["{PROMPT}", "a blue square"]'
    assert both in text
    (folder / "alone.toml").write_text(text.replace(both, f'prompts = ["{PROMPT}"]'))
    return folder


@pytest.fixture
def scale(shared: Path, monkeypatch: pytest.MonkeyPatch) -> ReproductionScale:
    """Two prompts, two methods and an extra KL weight."""
    monkeypatch.setattr(reproduction, "WORK", shared / "work")
    monkeypatch.setattr(runs, "LABELLED", 4)
    dpok = FineTuningMethod(
        "DPOK", "DPOK, leave-one-out", batch={"passes": 2, "loss_steps": 1, "ess": 0.0}, rate=FAST
    )
    methods = (FineTuningMethod(MethodName.PI_FT, "full adjoint", rate=STILL), dpok)
    return ReproductionScale("tiny", str(shared / "run.toml"), 3, methods, (9.0,), (), 6, 3, 3, 1)


@pytest.fixture
def alone(scale: ReproductionScale, shared: Path) -> ReproductionScale:
    """Its first prompt, without the extra weight."""
    return dataclasses.replace(scale, config=str(shared / "alone.toml"), betas=())


def value(
    records: list[Record], metric: str, method: str, prompt: str, beta: float | None = None
) -> Record:
    found = [
        r
        for r in records
        if (r.metric, r.estimator, r.problem) == (metric, method, prompt)
        and set(r.setting) == {"beta"}
        and beta in (None, r.setting["beta"])
    ]
    return found[0]


def test_every_method_samples_as_many_trajectories():
    for each in SCALES.values():
        prompts = each.settings.problem.prompts
        assert len(prompts) == 4
        for method in each.methods:
            settings = method_config(each, method, prompts[0], 0.1)
            rounds = (
                settings.run.steps
                * settings.batch.per_step
                / (settings.batch.trajectories * settings.batch.passes)
            )
            assert rounds == each.rounds
            assert settings.batch.passes == 1 or settings.batch.ess == 0, (
                "a round that ends early is replaced by another one"
            )
            assert settings.batch.prompts == 1
            assert settings.problem.beta == 0.1
        listed = tasks(each)
        assert len(listed) == len(prompts) * (1 + len(each.methods)) + len(
            set(each.betas) - {each.settings.problem.beta}
        )
        assert not any("variant" in task.arguments for task in listed)
        more = tasks(each, variants=True)
        assert more[: len(listed)] == listed
        variants = len(each.rates) + (len(REGRESSING) if each.settings.batch.target_clip else 0)
        assert len({task.name for task in more}) == len(listed) + len(prompts) * variants


def dpok_of(scale: ReproductionScale) -> FineTuningMethod:
    return next(method for method in scale.methods if method.title == "DPOK")


def test_as_published_dpok_takes_ten_gradient_steps_per_sampling_step_on_fifty_transitions():
    batch = method_config(SCALES["sd15"], dpok_of(SCALES["sd15"]), "p", 0.1).batch
    assert batch.passes * batch.trajectories / batch.per_step == 10
    assert batch.loss_steps is not None
    assert batch.per_step * batch.loss_steps == 50


def test_at_the_tiny_scale_every_method_takes_the_same_gradient_steps_on_as_many_transitions():
    scale = SCALES["tiny"]
    used = {
        (s.run.steps, s.batch.per_step, s.batch.loss_steps)
        for m in scale.methods
        for s in [method_config(scale, m, "p", 0.1)]
    }
    assert len(used) == 1


def test_runs_without_a_limit_differ_by_nothing_else():
    listed = tasks(SCALES["tiny"], variants=True)
    free = [task for task in listed if task.arguments.get("variant") == {"limit": "none"}]
    assert {task.arguments["method"].title for task in free} == set(REGRESSING)
    for task in free:
        (same,) = (each for each in listed if f"{each.name}, limit none" == task.name)
        limited, unlimited = (each.arguments["settings"] for each in (same, task))
        assert limited["run"].pop("out") != unlimited["run"].pop("out")
        assert limited["batch"].pop("target_clip") == 1.0
        assert unlimited["batch"].pop("target_clip", None) is None
        assert limited == unlimited


def test_likelihoods_are_clipped_alike_at_every_scale():
    """The published clip of likelihoods averaged over a latent of Stable Diffusion bounds the
    log-likelihood of a step here too.
    """
    unet = json.loads((CONFIGS.parent / "tiny/model/unet/config.json").read_text())
    for title in ("DPOK", "DDPO"):
        tiny, published = (
            next(m for m in SCALES[name].methods if m.title == title) for name in ("tiny", "sd15")
        )
        made_by = [
            instantiate("estimator", ANYWHERE, each.estimator, each.options)
            for each in (tiny, published)
        ]
        assert all(each.averaged for each in made_by)
        assert made_by[1].clip == 1e-4
        assert made_by[0].clip * unet["in_channels"] * unet["sample_size"] ** 2 == pytest.approx(
            1e-4 * 4 * 64 * 64
        )


@pytest.mark.slow
def test_an_untrained_model_draws_what_the_pre_trained_one_draws(
    scale: ReproductionScale, tmp_path: Path
):
    records = reproduce(scale, False, tmp_path / "records")
    prompts = scale.settings.problem.prompts
    for prompt in prompts:
        before = value(records, "reward", MethodName.PRE_TRAINED, prompt)
        still, moved = (
            value(records, "reward", method, prompt, scale.settings.problem.beta)
            for method in (MethodName.PI_FT, "DPOK")
        )
        assert still.value == pytest.approx(before.value, rel=1e-6)
        assert moved.value != pytest.approx(before.value, rel=1e-6)
        nothing, gain = (
            value(records, Metric.REWARD_GAIN, method, prompt, scale.settings.problem.beta)
            for method in (MethodName.PI_FT, "DPOK")
        )
        assert abs(nothing.value) < 1e-6 * abs(before.value)
        assert gain.value == pytest.approx(moved.value - before.value, rel=1e-6)
        assert gain.stderr is not None
        assert moved.stderr is not None
        assert before.stderr is not None
        assert 0 < gain.stderr < moved.stderr + before.stderr
        assert value(records, "kl", MethodName.PI_FT, prompt).value == pytest.approx(0, abs=1e-12)
        assert value(records, "kl", "DPOK", prompt).value > 0
    curve = [
        r
        for r in records
        if r.metric == "reward" and "round" in r.setting and r.estimator == "DPOK"
    ]
    assert len(curve) == 2 * scale.rounds
    assert {r.setting["paths"] for r in curve} == {4 * (i + 1) for i in range(scale.rounds)}
    _look(scale, tmp_path, prompts)


def _look(scale: ReproductionScale, tmp_path: Path, prompts: tuple[str, ...]) -> None:
    """The pictures of the run that learnt nothing are those of the pre-trained model, and the
    report shows them.
    """
    folder = tmp_path / "records" / "stable_diffusion"
    beta = scale.settings.problem.beta
    names = {
        method: folder / picture_of(method, prompts[0], beta)
        for method in (MethodName.PRE_TRAINED, MethodName.PI_FT, "DPOK")
    }
    assert names[MethodName.PRE_TRAINED].read_bytes() == names[MethodName.PI_FT].read_bytes()
    with Image.open(io.BytesIO(names["DPOK"].read_bytes())) as picture:
        assert picture.width == pytest.approx(scale.shown * picture.height, abs=scale.shown)
    files = report(scale.study).write(tmp_path / "records", tmp_path / "reports")
    assert [file.name for file in files] == [
        "findings.json",
        "stable_diffusion-reached.svg",
        "stable_diffusion.pdf",
    ]


@pytest.mark.slow
def test_further_trainings_differ_by_their_seed_alone_and_are_compared_in_the_report(
    alone: ReproductionScale, tmp_path: Path
):
    moving = dataclasses.replace(
        alone, methods=tuple(dataclasses.replace(m, rate=FAST) for m in alone.methods)
    )
    records = reproduce(moving, False, tmp_path / "records", trainings=2)
    once = reproduce(moving, False, tmp_path / "once")
    again = [r for r in records if "training" in r.setting]
    assert [_timeless(r) for r in records if r not in again] == [_timeless(r) for r in once]
    prompts, beta = moving.settings.problem.prompts, moving.settings.problem.beta
    for method in (MethodName.PI_FT, "DPOK"):
        for prompt in prompts:
            first = value(records, Metric.REWARD_GAIN, method, prompt, beta)
            others = [
                r
                for r in again
                if (r.metric, r.estimator, r.problem) == (Metric.REWARD_GAIN, method, prompt)
            ]
            assert [r.setting["training"] for r in others] == [2]
            assert others[0].value != first.value
    runs = [t for t in tasks(moving, 2) if t.name.startswith(f"DPOK, {prompts[0]}")]
    earlier, later = (run.arguments["settings"] for run in runs)
    assert later["run"].pop("out") != earlier["run"].pop("out")
    assert later["run"].pop("seed") == earlier["run"].pop("seed") + 1
    assert later == earlier
    ahead, pairs = ahead_in_trainings(Rows(tuple(records)), Metric.REWARD_GAIN, beta)
    assert pairs == 2 * len(prompts)
    assert ahead == sum(
        a.value > b.value
        for a in records
        for b in records
        if a.metric == b.metric == Metric.REWARD_GAIN
        and (a.estimator, b.estimator) == (MethodName.PI_FT, "DPOK")
        and (a.problem, a.setting) == (b.problem, b.setting)
    )
    with pytest.raises(InvalidProblem, match="trainings = 0; give at least 1"):
        reproduce(moving, True, tmp_path / "none", trainings=0)


@pytest.mark.slow
def test_dpok_at_other_rates_is_a_run_of_its_own_and_is_compared_in_the_report(
    alone: ReproductionScale, tmp_path: Path
):
    """At the rate at which nothing moves it gains nothing; PI-FT is held against the better of the
    two.
    """
    rated = dataclasses.replace(alone, rates=(STILL,))
    records = reproduce(rated, False, tmp_path / "records", variants=True)
    rows, beta = Rows(tuple(records)), alone.settings.problem.beta
    others = rows.having("beta", "rate")
    assert {(r.estimator, r.setting["rate"], r.metric) for r in others} == {
        ("DPOK", STILL, metric) for metric in (Metric.REWARD_GAIN, Metric.ACCURACY_GAIN, "kl")
    }
    assert all(abs(r.value) < 1e-6 for r in others)
    shared = [
        value(records, Metric.REWARD_GAIN, "DPOK", prompt, beta).value
        for prompt in alone.settings.problem.prompts
    ]
    still = [
        value(records, Metric.REWARD_GAIN, MethodName.PI_FT, prompt, beta).value
        for prompt in alone.settings.problem.prompts
    ]
    best = [max(gain, 0.0) for gain in shared]
    assert ahead_at_the_best_rate(rows, Metric.REWARD_GAIN, beta)[1] == len(best)
    assert min(abs(gain) for gain in shared) > 1e3 * max(map(abs, still))
    *_, file = report(alone.study).write(tmp_path / "records", tmp_path / "reports")
    assert file.stat().st_size > 0


@pytest.mark.slow
def test_where_a_run_fell_its_gradients_are_compared_with_those_of_pi_ft(
    alone: ReproductionScale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The run that learnt nothing ends at the pre-trained model, where they are known without
    it.
    """
    monkeypatch.setattr(runs, "has_fallen", lambda record: record.metric == "reward")
    records = reproduce(alone, False, tmp_path / "records")
    prompt, beta = alone.settings.problem.prompts[0], alone.settings.problem.beta
    found = Rows(tuple(r for r in records if r.problem == prompt and "policy" in r.setting))
    assert {(r.estimator, r.setting["policy"]) for r in found} == {
        (MethodName.PI_FT, MethodName.PI_FT),
        (MethodName.PI_FT, "DPOK"),
        ("DPOK", "DPOK"),
    }
    assert {r.setting["beta"] for r in found} == {beta}
    still, moved = (
        found.where(Metric.AGREEMENT, estimator=MethodName.PI_FT, policy=policy).records[0].value
        for policy in (MethodName.PI_FT, "DPOK")
    )
    untouched = build(method_config(alone, alone.pi_ft, prompt, beta))
    expected = gradient_agreement.compare_estimators(
        untouched, {MethodName.PI_FT: FullAdjoint()}, alone.batches, scales.SEED
    )
    assert still == pytest.approx(
        {metric: value for _, metric, value, _ in expected}[Metric.AGREEMENT], rel=1e-5
    )
    assert moved != pytest.approx(still, rel=1e-2)


@pytest.mark.slow
def test_an_interrupted_reproduction_ends_with_the_same_records(
    alone: ReproductionScale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    only = dataclasses.replace(alone, methods=(dataclasses.replace(alone.methods[0], rate=None),))
    expected = reproduce(only, True, tmp_path / "whole")
    monkeypatch.setattr(reproduction, "WORK", tmp_path / "other")
    original = runs.read_metrics

    def interrupted(file: Path) -> list[dict[str, object]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "read_metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce(only, True, tmp_path / "again")
    monkeypatch.setattr(runs, "read_metrics", original)
    reproduce(only, True, tmp_path / "again")
    found = read(tmp_path / "again" / "stable_diffusion.jsonl")
    assert [_timeless(record) for record in found] == [_timeless(record) for record in expected]


def _timeless(record: Record) -> str:
    timeless = record.value if record.metric != "seconds" else 0.0
    return encode(dataclasses.replace(record, value=timeless, seconds=None, peak_mb=None))


def test_trainings_of_a_comparison_have_seeds_of_their_own_and_the_rates_of_their_pilots():
    scale = SCALES["tiny_flow"]
    assert scale.protocol is not None
    protocol = dataclasses.replace(scale.protocol, trainings=3)
    methods = compared(scale, protocol)
    pilots = pilot_tasks(scale, protocol, methods)
    tuned = [dataclasses.replace(method, rate=0.5) for method in methods]
    trainings = training_tasks(scale, protocol, tuned)
    told, trained = (
        [task.arguments["settings"] for task in listed] for listed in (pilots, trainings)
    )
    assert {each["run"]["seed"] for each in told}.isdisjoint(
        each["run"]["seed"] for each in trained
    )
    assert {each["run"]["seed"] for each in trained} == {1, 2, 3}
    assert {each["optimiser"]["rate"] for each in told} == set(protocol.rates)
    assert {each["optimiser"]["rate"] for each in trained} == {0.5}
    everything = (*told, *trained)
    assert len({each["run"].pop("out") for each in everything}) == len(everything)
    budgets = {
        each["run"]["steps"]
        * (each["batch"]["paths"] or each["batch"]["trajectories"])
        / each["batch"]["passes"]
        for each in everything
    }
    assert budgets == {scale.rounds * 16}
    assert len(trained) == 3 * len(protocol.prompts) * len(protocol.methods)


def test_the_rate_of_the_best_pilots_is_taken_in_the_mean_over_prompts():
    def pilot(title: str, rate: float, prompt: str, gain: float) -> Record:
        setting = {"beta": 1.0, "rate": rate, "pilot": 7}
        return Record("pilots", prompt, Metric.OBJECTIVE_GAIN, gain, setting, estimator=title)

    found = [
        pilot("one", 0.1, "a", 1.0),
        pilot("one", 0.1, "b", -3.0),
        pilot("one", 0.2, "a", 0.1),
        pilot("one", 0.2, "b", 0.2),
        pilot("other", 0.1, "a", 0.9),
        pilot("other", 0.2, "a", 0.8),
    ]
    assert (best_rate(found, "one"), best_rate(found, "other")) == (0.2, 0.1)


@pytest.mark.slow
def test_a_comparison_measures_pilots_once_and_gains_on_noise_that_is_shared(
    alone: ReproductionScale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At a rate at which nothing moves nothing is gained, so the other is chosen where it gains."""
    methods = tuple(dataclasses.replace(m, rate=None, batch={}) for m in alone.methods)
    flow = dataclasses.replace(alone, methods=methods, rounds=2)
    titles, prompts = tuple(m.title for m in methods), alone.settings.problem.prompts
    protocol = ComparisonProtocol(titles, prompts, (STILL, 0.01), (1000,), 2)
    original = comparison.measure_training

    def interrupted(*_: object) -> list[Record]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(comparison, "training_tasks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(flow, protocol, False, tmp_path)
    pilots = read(tmp_path / "stable_diffusion_pilots.jsonl")
    measured: list[object] = []

    def counted(**arguments: object) -> list[Record]:
        measured.append(arguments["setting"])
        return original(**arguments)  # pyright: ignore[reportArgumentType]

    counted.__module__, counted.__qualname__ = original.__module__, original.__qualname__
    monkeypatch.setattr(comparison, "measure_training", counted)
    records = compare(flow, protocol, False, tmp_path)
    assert measured == [{"training": n} for n in (1, 2) for _ in titles]
    assert not list(tmp_path.glob("*.partial.jsonl"))
    for title in titles:
        still = [
            r
            for r in pilots
            if (r.estimator, r.metric, r.setting["rate"]) == (title, Metric.OBJECTIVE_GAIN, STILL)
        ]
        assert [abs(r.value) < 1e-6 for r in still] == [True]
        ends = {
            (r.metric, r.setting["training"]): r
            for r in records
            if r.estimator == title and "round" not in r.setting
        }
        beta = alone.settings.problem.beta
        for training in (1, 2):
            gain, reward, kl = (
                ends[metric, training].value
                for metric in (Metric.OBJECTIVE_GAIN, Metric.REWARD_GAIN, Metric.KL)
            )
            assert gain == pytest.approx(reward - beta * kl, rel=1e-9)
            assert ends[Metric.OBJECTIVE_GAIN, training].setting["rate"] == best_rate(pilots, title)
    first = {
        r.estimator: r.value
        for r in records
        if r.metric == Metric.REWARD and r.setting.get("round") == 0 and r.setting["training"] == 1
    }
    assert len(first) == len(titles)
    assert max(first.values()) == pytest.approx(min(first.values()), rel=1e-9), (
        "the first paths of a seed are those of every method"
    )


def test_the_drop_of_a_run_is_its_best_window_minus_its_last():
    rewards = [0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0]
    rounds = [
        {"reward": r, "reward_stderr": 0.3, "target_norm": 1.0 + i} for i, r in enumerate(rewards)
    ]
    drop = results.drop_record(
        lambda metric, value, setting, **rest: Record("s", "p", metric, value, setting, **rest),
        rounds,
        {},
    )
    assert drop.value == pytest.approx(3.0)
    assert drop.stderr == pytest.approx((2 * 0.3**2 / 4) ** 0.5)
