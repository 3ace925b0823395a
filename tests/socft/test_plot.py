"""Plots show the numbers that the objects have."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.quiver import Quiver

from socft import (
    AffineReference,
    ControlProblem,
    ExactPIFT,
    Gaussian,
    GaussianMixture,
    Linear,
    Noise,
    Quadratic,
    Quadrature,
    Record,
    Records,
    ScalarDiffusion,
    Sine,
    Uncontrolled,
    observe,
    rollout,
)
from socft.checks import InvalidProblem


@pytest.fixture(autouse=True)
def _without_a_screen() -> Iterator[None]:
    with mpl.rc_context({"backend": "agg"}):
        yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def truth() -> Quadrature:
    reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    return Quadrature(ControlProblem(reference, Sine(), beta=2.0))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def drawn(axes: Axes, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = axes.lines[index].get_data()
    return np.asarray(x, float), np.asarray(y, float)


@pytest.mark.parametrize(
    "law", [Gaussian(1.0, 0.25), GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], 0.2)]
)
def test_a_density_is_drawn_with_all_its_mass(law: Gaussian | GaussianMixture):
    x, y = drawn(law.plot(samples=law.sample(500, generator())))
    assert np.trapezoid(y, x) == pytest.approx(1, abs=2e-3)
    exact = law.log_prob(torch.from_numpy(x)[:, None]).exp()
    np.testing.assert_allclose(y, exact, rtol=1e-12)


def test_a_density_in_the_plane_has_its_axes_in_order():
    law = Gaussian([3.0, -1.0], [[0.04, 0.0], [0.0, 1.0]])
    axes = law.plot()
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert left < 3 < right
    assert low < -1 < high
    assert right - left < (high - low) / 3


def test_the_law_of_a_chain_is_drawn_with_all_its_mass(truth: Quadrature):
    x, y = drawn(truth.law.plot())
    assert np.trapezoid(y, x) == pytest.approx(1, abs=1e-6)
    uncontrolled = truth.law_of(Uncontrolled(truth.problem.reference))
    _, start = drawn(uncontrolled.plot())
    assert np.abs(y - start).max() > 1e-3


def test_paths_are_drawn_as_they_are(truth: Quadrature):
    noise = Noise.sample(truth.problem.reference, 5, generator())
    path = rollout(truth.problem.reference, truth.policy, noise)
    axes = path.plot(paths=3)
    assert len(axes.lines) == 3
    np.testing.assert_array_equal(drawn(axes, 2)[1], path.states[:, 2, 0])


def test_the_control_is_drawn_where_it_belongs(truth: Quadrature):
    axes = truth.plot()
    (field,) = [each for each in axes.collections if isinstance(each, QuadMesh)]
    corners = np.asarray(field.get_coordinates(), float)
    middle = (corners[:-1, 0, 1] + corners[1:, 0, 1]) / 2
    values = np.asarray(field.get_array()).reshape(len(middle), truth.problem.steps)
    for k in range(truth.problem.steps):
        exact = truth.control(k, torch.from_numpy(middle)[:, None])[:, 0]
        np.testing.assert_allclose(values[:, k], exact, atol=1e-12)


def test_moves_in_the_plane_are_those_of_the_control():
    reference = AffineReference([[[0.9, 0.0], [0.0, 0.9]]] * 2, ScalarDiffusion([0.5] * 2))
    truth = Quadrature(
        ControlProblem(reference, Linear(torch.tensor([1.0, -2.0], dtype=torch.float64)), beta=2.0),
        nodes=(41, 41),
    )
    (arrows,) = [each for each in truth.plot(step=1).collections if isinstance(each, Quiver)]
    moves = np.stack([arrows.U, arrows.V], 1)
    np.testing.assert_allclose(moves, np.tile([0.125, -0.25], (len(moves), 1)), rtol=1e-6)


def test_iterates_are_drawn_with_their_bound(truth: Quadrature):
    rows = observe(truth, ExactPIFT(inner=3).iterations(truth.problem))
    axes = rows.plot(bound=lambda m: 2.0**-m)
    index, error = drawn(axes)
    np.testing.assert_array_equal(index, [0, 1, 2, 3])
    np.testing.assert_allclose(error, [float(row.control_error.max()) for row in rows.seen])
    dashed = [line for line in axes.lines if "bound" in str(line.get_label())]
    np.testing.assert_allclose(np.asarray(dashed[0].get_ydata(), float), [1, 0.5, 0.25, 0.125])


def test_records_are_drawn_with_errors_and_bounds():
    rows = Records(
        Record("s", "p", "error", 3.0**-n, {"n": n, "d": 1}, bound=2.0**-n, stderr=0.1)
        for n in (3, 1, 2)
    )
    axes = rows.plot()
    x, y = drawn(axes)
    np.testing.assert_array_equal(x, [1, 2, 3])
    np.testing.assert_allclose(y, [1 / 3, 1 / 9, 1 / 27])
    dashed = [line for line in axes.lines if "bound" in str(line.get_label())]
    np.testing.assert_allclose(np.asarray(dashed[0].get_ydata(), float), [1 / 2, 1 / 4, 1 / 8])
    assert len(axes.containers) == 1


def test_a_scale_is_logarithmic_where_numbers_are_far_apart():
    def scale(*values: float) -> str:
        rows = [Record("s", "p", "e", v, {"n": n}) for n, v in enumerate(values)]
        return Records(rows).plot().get_yscale()

    assert scale(1.0, 1e-3) == "log"
    assert scale(1.0, 0.5) == "linear"
    assert scale(1.0, -1e-3) == "linear"


def test_records_of_one_curve_that_coincide_are_refused():
    rows = Records(Record("s", "p", "e", 1.0, {"n": n, "d": d}) for n in (1, 2) for d in (1, 2, 3))
    with pytest.raises(InvalidProblem, match=r"several records of p, e have n = 1.*by d"):
        rows.plot("n")
    assert [record.setting["n"] for record in rows.of(d=2)] == [1, 2]
    with pytest.raises(InvalidProblem, match="'m'"):
        rows.plot("m")
    with pytest.raises(InvalidProblem, match="nothing to draw against"):
        Records(rows[:1]).plot()


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(InvalidProblem, match=r"the states have the shape \(3,\)"):
        Gaussian(torch.zeros(3), 1.0).plot()
    reference = AffineReference([torch.eye(3).tolist()] * 2, ScalarDiffusion([0.5] * 2))
    path = rollout(reference, Uncontrolled(reference), Noise.sample(reference, 2, generator()))
    with pytest.raises(InvalidProblem, match=r"the states have the shape \(3,\)"):
        path.plot()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(InvalidProblem, match=r"pip install 'socft\[plot\]'"):
        Gaussian(0.0, 1.0).plot()


def test_samples_of_a_truth_have_its_law():
    reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    problem = ControlProblem(reference, Quadratic(-torch.ones(1, 1), torch.ones(1)), beta=2.0)
    truth = Quadrature(problem)
    x = truth.sample(4000, generator())[:, 0]
    nodes, mass = truth.grids[-1].nodes[:, 0], truth.law.masses[-1]
    mean = float(mass @ nodes)
    spread = math.sqrt(float(mass @ nodes.square()) - mean**2)
    assert abs(float(x.mean()) - mean) < 4 * spread / math.sqrt(len(x))
    assert float(x.std()) == pytest.approx(spread, rel=4 / math.sqrt(2 * len(x)))
