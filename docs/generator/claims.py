"""Pages of the claims: statement, numbers beside bounds, extremal instance, failing twin, proof,
code.

They are made of the docstrings of ``verify`` and of the records of ``socft verify``; a claim
without a record says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from docs.generator.html import Scale, cited, escaped, histogram, number, table
from docs.generator.mathematics import dollars, typst_html
from docs.generator.pages import Page
from socft.report.claim_records import FILE, ClaimLine, Claims, PartLine, read_claims
from socft.report.convergence.claims_chapter import HOW

SECTION = "Claims"
SECTIONS = ("Setting", "Statement", "Kind", "Source", "How it is measured", "What would refute it")
RATIOS = Scale(1e-6, 3.0)
KINDS: Mapping[str, str] = {
    "tight": "an instance attains the bound",
    "upper bound": "no instance attains the bound",
    "equality": "both sides agree up to a tolerance",
    "limit": "holds as a parameter grows",
}


def pages(root: Path) -> list[Page]:
    """The table of all claims and a page of each, with its code and its line of the record as
    files.

    Args:
        root: the folder with ``verify`` and ``reports``.
    """
    claims = read_claims(root / "reports" / "records")
    typeset = Typeset(claims)
    found = [Page("claims/index.md", "All claims", overview(claims, typeset), "")]
    for line in claims:
        code = (root / "verify" / f"{line.name}.py").read_text(encoding="utf-8")
        found.append(
            Page(f"claims/{line.name}.md", line.title, page(line, code, typeset), line.topic.title)
        )
    return [*found, *_files(root, claims)]


def _files(root: Path, claims: Claims) -> list[Page]:
    """The code of each claim, and its line of the record."""
    record = (root / "reports" / "records" / FILE).read_text(encoding="utf-8")
    rows = {json.loads(row)["claim"]: row for row in record.splitlines()}
    codes = {line.name: (root / "verify" / f"{line.name}.py").read_text("utf-8") for line in claims}
    return [
        *(Page(f"claims/{name}.py.txt", "", code) for name, code in codes.items()),
        *(Page(f"claims/{name}.json", "", row) for name, row in rows.items()),
    ]


class Typeset:
    """Markup of all claims as HTML, compiled at once."""

    def __init__(self, claims: Claims):
        pieces = {piece: None for line in claims for piece in _markup(line)}
        self._html = dict(zip(pieces, typst_html(list(pieces)), strict=True))

    def __getitem__(self, piece: str) -> str:
        return self._html[piece]


def _markup(line: ClaimLine) -> Iterable[str]:
    yield from (line.topic.measured, line.statement, line.words, *line.findings)
    for part in line.parts:
        yield from (part.part, part.words)


def overview(claims: Claims, typeset: Typeset) -> str:
    """All claims by topic, with their statements and worst ratios."""
    verified, checks = claims.count("verified"), sum(line.checked for line in claims)
    body = [
        "# Claims\n",
        f"**{verified} of {len(claims)} statements verified, in {checks:,} checks.** Each is held"
        " against exact solutions: on instances drawn at random and steered towards the worst"
        " ratio, on the instance that attains the bound, and without its assumption, where it must"
        " fail. Check them again with `socft verify`.\n",
    ]
    for topic, lines in claims.topics().items():
        rows = [
            (
                f'<a href="{line.name}.html">{escaped(line.title)}</a>',
                typeset[line.statement],
                line.kind,
                _worst(line),
            )
            for line in lines
        ]
        body += [f"## {topic.title}\n", table(("claim", "statement", "kind", "ratio"), rows, (3,))]
    return "\n\n".join(body) + "\n"


def page(line: ClaimLine, code: str, typeset: Typeset) -> str:
    """The page of a claim.

    Args:
        code: of its file.
    """
    said = sections(code)
    parts = [
        f"# {line.title}",
        f'<p class="chips"><span class="{line.status.replace(" ", "-")}">{line.status}</span>'
        f"<span>{line.kind}</span><span>{line.checked:,} checks</span></p>",
        dollars(said["about"]),
        f'<div class="statement">{typeset[line.statement]}</div>',
        f'<p class="source">{cited(line.source)}</p>',
        "## Number beside bound",
        _summary(line),
        _picture(line),
        _parts(
            line.parts, ("inequality", "sharper inequality", "equality", "certificate"), typeset
        ),
        *_group("Extremal instance", _EXTREMAL, line, "attained", typeset),
        *_group("Failing twin", _TWIN, line, "negative control", typeset),
        *_findings(line, typeset),
        "## Setting and proof",
        *(f"**{name}.** {dollars(said[name])}" for name in SECTIONS if said.get(name)),
        _again(line),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_EXTREMAL = "The instance that attains, or approaches, the bound."
_TWIN = (
    "Without its assumption the conclusion must fail; the instance that exceeds the bound least."
)


def sections(code: str) -> Mapping[str, str]:
    """The sections of the docstring of a claim's file; ``about`` is its first paragraph.

    The first paragraphs of the statement and of the source are left out, which stand at the head of
    the page.
    """
    docstring = re.match(r'r?"""(.*?)"""', code, re.DOTALL)
    text = docstring[1] if docstring else ""
    parts = re.split(rf"^({'|'.join(SECTIONS)}): ", text, flags=re.MULTILINE)
    found = {name: each.strip() for name, each in zip(parts[1::2], parts[2::2], strict=True)}
    for name in ("Statement", "Source"):
        found[name] = found.get(name, "").partition("\n\n")[2]
    return {"about": parts[0].strip(), **found}


def _summary(line: ClaimLine) -> str:
    rows = [("worst ratio, measured / bound", _worst(line))]
    if line.ratio_sharp is not None:
        rows.append(("worst ratio to the sharper bound", number(line.ratio_sharp)))
    if line.attained is not None:
        rows.append(("ratio of the extremal instance", number(line.attained, 4)))
    rows += [
        ("fails without its assumption", "yes, as it must" if line.control else "not tried"),
        ("certified in ball arithmetic", "yes" if line.certified else "no"),
    ]
    return table(("", KINDS.get(line.kind, line.kind)), rows, (1,))


def _worst(line: ClaimLine) -> str:
    shown = number(line.ratio)
    return shown if line.compares_with_bound or line.ratio is None else f"{shown} of tolerance"


def _picture(line: ClaimLine) -> str:
    if not line.histogram:
        return ""
    marks = {"worst": line.ratio, "sharper": line.ratio_sharp, "attained": line.attained}
    known = {name: value for name, value in marks.items() if value is not None}
    title = f"measured / bound over the checks of {line.title}; the vertical line is the bound"
    drawn = histogram(line.histogram, known, title, RATIOS)
    return (
        f'<figure class="wide">{drawn}<figcaption>Distribution of measured / bound over the checks.'
        " The line is the bound; diamonds are the worst ratio (filled), that to the sharper bound"
        " (hollow) and that of the extremal instance (green).</figcaption></figure>"
    )


def _parts(parts: Sequence[PartLine], kinds: Sequence[str], typeset: Typeset) -> str:
    rows = [
        (
            HOW[part.how],
            typeset[part.part] or "the whole",
            f"{part.checked:,}",
            number(part.measured),
            number(part.bound),
            number(part.ratio),
            typeset[part.words],
        )
        for part in parts
        if part.how in kinds
    ]
    header = ("check", "part", "number", "measured", "bound", "ratio")
    return table(header, rows, (2, 3, 4, 5)) if rows else ""


def _group(title: str, about: str, line: ClaimLine, how: str, typeset: Typeset) -> Sequence[str]:
    found = _parts(line.parts, (how,), typeset)
    return (f"## {title}", about, found) if found else ()


def _findings(line: ClaimLine, typeset: Typeset) -> Sequence[str]:
    if not line.findings:
        return ()
    items = "".join(f"<li>{typeset[each]}</li>" for each in line.findings)
    return ("## Findings", f"<ul>{items}</ul>")


def _again(line: ClaimLine) -> str:
    measured = (
        f"It was measured in {line.seconds:.0f} s at commit `{line.commit[:7]}`;"
        f" [its line of the record]({line.name}.json) has every number,"
        if line.versions
        else "It has no record yet,"
    )
    return (
        f"## Check it again\n\n```sh\nsocft verify {line.name}\n```\n\n{measured}"
        f" and [its code]({line.name}.py.txt), `verify/{line.name}.py`, every check."
    )
