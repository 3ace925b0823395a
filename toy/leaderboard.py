"""The leaderboard: problems by estimators, a table per kind of estimand, oracles apart.

Its rows are those shipped for the built-in estimators and one file per other estimator, as
``socft bench`` writes it, in the folder `toy.shipped.ROWS`: a new file is a new row.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from socft.checks import InvalidProblem, require
from socft.estimators.catalogue import CATALOGUE
from socft.estimators.estimand import Kind
from socft.files import parse_json, read_bytes
from socft.study.comparison import BUDGET
from toy.bench import gradients
from toy.ranks import BenchmarkStanding, is_oracle, standings
from toy.repeated import RepeatedGradient, finite
from toy.shipped import ROWS, shipped
from toy.suite import SUITE

AGAIN = "write it again with socft bench"
ABOUT = (
    "Every estimator where the exact gradient is known: its rank among its kind with the interval"
    " of 95% of the draws of a bootstrap, and what it is ordered by, with its interval. Ranks that"
    " the bootstrap does not tell apart are tied. Gradients and biased estimates are ordered by"
    f" their error with {BUDGET:,} network evaluations, bias and noise together, in units of the"
    " gradient at the pre-trained model; residuals by their noise relative to their own size;"
    " everything at the optimum, where the gradient is zero, by the error relative to its own size"
    " at the pre-trained model. Smaller is better. Oracles use the exact solution and have no rank."
)
ORACLES = "oracles"


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """All rows.

    Attributes:
        standings: by situation and estimator.
        kinds: of the estimators.
    """

    standings: Mapping[str, Mapping[str, BenchmarkStanding]]
    kinds: Mapping[str, str]

    @property
    def tables(self) -> dict[str, list[str]]:
        """Estimators by kind, the best first: by the mean of their ranks, each over how many there
        are; oracles last.
        """
        found: dict[str, list[str]] = {kind: [] for kind in (*Kind, ORACLES)}
        for name, kind in self.kinds.items():
            found[ORACLES if is_oracle(name) else kind].append(name)
        return {
            kind: sorted(names, key=lambda name: (self._place(name), name))
            for kind, names in found.items()
            if names
        }

    def _place(self, name: str) -> float:
        ranks = [
            standing.rank / standing.of
            for each in self.standings.values()
            if (standing := each.get(name)) is not None and standing.rank is not None
        ]
        return sum(ranks) / len(ranks) if ranks else math.inf

    def rows(self, names: Sequence[str]) -> Iterator[list[str]]:
        """The cells of a table."""
        for name in names:
            yield [name, *(_cell(each.get(name)) for each in self.standings.values())]

    def markdown(self) -> str:
        """As Markdown."""
        lines = ["# Leaderboard of gradient estimators", "", ABOUT]
        head = ["estimator", *self.standings]
        for kind, names in self.tables.items():
            lines += ["", f"## {kind.capitalize()}", "", _line(head), _line(["---"] * len(head))]
            lines += [_line(cells) for cells in self.rows(names)]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """As a page of its own."""
        head = "".join(f"<th>{html.escape(each)}</th>" for each in ("estimator", *self.standings))
        parts = []
        for kind, names in self.tables.items():
            body = "\n".join(
                "<tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in cells) + "</tr>"
                for cells in self.rows(names)
            )
            parts.append(
                f"<h2>{html.escape(kind.capitalize())}</h2>\n<table>\n<thead><tr>{head}</tr>"
                f"</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
            )
        return PAGE.format(about=html.escape(ABOUT), tables="\n".join(parts))

    def json(self) -> str:
        """Everything, for other programs."""
        rows = [
            {
                "estimator": name,
                "kind": kind,
                "oracle": is_oracle(name),
                "situations": {
                    title: finite(dataclasses.asdict(each[name]))
                    for title, each in self.standings.items()
                    if name in each
                },
            }
            for name, kind in self.kinds.items()
        ]
        return json.dumps({"about": ABOUT, "rows": rows}, indent=1, allow_nan=False) + "\n"


def leaderboard(folder: Path = ROWS) -> Leaderboard:
    """The leaderboard of the rows of a folder.

    Raises:
        InvalidProblem: a file is damaged, or has the name of another row.
    """
    found = gradients(shipped())
    built_in = {name for each in found.values() for name in each}
    for file in sorted(folder.glob("*.json")):
        name, places = _row(file)
        require(
            name not in built_in,
            f"{file} is a row of {name!r}, which there is already; name the estimator otherwise.",
        )
        built_in.add(name)
        for title, each in places.items():
            found[title][name] = each
    kinds = {name: each.kind for here in found.values() for name, each in here.items()}
    known = [*(name for name in CATALOGUE if name in kinds), *kinds]
    return Leaderboard(
        {
            case.title: standings(case, found[case.title], found.get(case.start, {}))
            for case in SUITE
        },
        {name: kinds[name] for name in dict.fromkeys(known)},
    )


def _row(file: Path) -> tuple[str, dict[str, RepeatedGradient]]:
    row = parse_json(read_bytes(file, AGAIN).decode("utf-8", "replace"), str(file), AGAIN)
    titles = {case.title for case in SUITE}
    try:
        places = {
            title: RepeatedGradient.read(each["repetitions"])
            for title, each in row["situations"].items()
            if "repetitions" in each and title in titles
        }
        return str(row["estimator"]), places
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidProblem(f"{file} is no row of socft bench ({error!r}); {AGAIN}.") from error


def _cell(standing: BenchmarkStanding | None) -> str:
    if standing is None:
        return "refused"
    if standing.figure is None or standing.figure_interval is None:
        return f"no rank; error {_number(standing.error_at_budget)}"
    low, high = standing.figure_interval
    figure = f"{_number(standing.figure)} ({_number(low)} to {_number(high)})"
    if standing.rank is None or standing.rank_interval is None:
        return figure
    first, last = standing.rank_interval
    return f"{standing.rank} ({first} to {last}): {figure}"


def _number(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "∞"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Leaderboard of gradient estimators</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem }}
table {{ border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }}
th, td {{ padding: .25rem .6rem; text-align: left; white-space: nowrap }}
td {{ border-bottom: 1px solid #ddd }}
tbody tr:hover {{ background: #f3f6fa }}
</style>
</head>
<body>
<h1>Leaderboard of gradient estimators</h1>
<p>{about}</p>
{tables}
</body>
</html>
"""
