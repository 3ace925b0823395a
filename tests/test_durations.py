"""Marks of slow tests follow the measured times."""

from __future__ import annotations

from tests.support.durations import LIMIT, Timing, misplaced


def test_a_slow_test_without_a_mark_is_named():
    assert misplaced([Timing("tests/test_a.py::test_b", 1.5 * LIMIT, slow=False)]) == [
        f"{1.5 * LIMIT:6.1f} s  tests/test_a.py::test_b: mark it @pytest.mark.slow"
    ]


def test_a_mark_that_is_not_needed_is_named():
    assert misplaced([Timing("test_a", 0.1, slow=True)]) == ["   0.1 s  test_a: no longer slow"]


def test_marks_that_fit_are_not_named():
    timings = [
        Timing("test_a", 1.5 * LIMIT, slow=True),
        Timing("test_b", 0.7 * LIMIT, slow=True),
        Timing("test_c", 0.7 * LIMIT, slow=False),
    ]
    assert misplaced(timings) == []


def test_a_test_is_as_slow_as_its_slowest_parameters():
    timings = [Timing("test_a[1]", 0.1, slow=True), Timing("test_a[2]", 9 * LIMIT, slow=True)]
    assert misplaced(timings) == []
