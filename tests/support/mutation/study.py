"""Which tests are to notice mistakes in which modules."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tests, and the modules whose mutants they are tried on.

    Attributes:
        name: of the suite.
        modules: patterns of files.
        tests: files and folders of tests.
        profile: of hypothesis, by name.
    """

    name: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]
    profile: str = "socft"


_ALL = (
    Suite("theory", ("socft/theory/*.py",), ("tests/socft/theory",)),
    Suite("claims", ("socft/theory/*.py",), ("verify", "-k", "not test_holds"), "verify"),
    Suite(
        "costates",
        ("socft/costates/*.py",),
        ("tests/socft/costates", "tests/socft/estimators"),
    ),
    Suite(
        "estimators",
        ("socft/estimators/**/*.py",),
        ("tests/socft/estimators", "tests/socft/costates", "tests/toy/test_measure.py"),
    ),
    Suite("truth", ("socft/truth/*.py",), ("tests/socft/truth", "tests/socft/test_pi_ft.py")),
    Suite(
        "chains",
        (
            "socft/schedule.py",
            "socft/reference/*.py",
            "socft/path.py",
            "socft/path_measure.py",
            "socft/sde.py",
        ),
        (
            "tests/socft/test_schedule.py",
            "tests/socft/reference",
            "tests/socft/test_sde.py",
            "tests/socft/test_path.py",
            "tests/socft/test_policy.py",
            "tests/socft/test_problem.py",
            "tests/socft/truth/test_tilt.py",
            "tests/socft/estimators",
        ),
    ),
    Suite(
        "density",
        ("socft/density/*.py",),
        (
            "tests/socft/density",
            "tests/socft/flow/test_flow.py",
            "tests/socft/truth/test_mixture.py",
            "tests/socft/truth/test_tilt.py",
        ),
    ),
    Suite("flow", ("socft/flow/*.py",), ("tests/socft/flow", "tests/socft/estimators/flow")),
)
SUITES = {suite.name: suite for suite in _ALL}
