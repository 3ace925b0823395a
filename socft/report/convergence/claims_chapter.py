"""The chapter of the convergence report on the claims: every statement, how it was checked and what
came out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from socft.report.claim_records import ClaimLine, Claims, PartLine, TopicLine
from socft.report.typeset import (
    NOT_MEASURED,
    Table,
    figure,
    fraction_of_bound,
    integer,
    number,
    text,
)

HOW: Mapping[str, str] = {
    "inequality": "holds",
    "sharper inequality": "holds, sharper",
    "equality": "equal",
    "attained": "attained",
    "negative control": "fails without",
    "certificate": "certified",
}
"""What a kind of check says, in the order of the tables."""
NONE = "–"


def chapter(claims: Claims) -> str:
    """The chapter; its picture is ``claims.svg``."""
    picture = figure(
        "claims.svg",
        """Every claim: distribution of measured / bound over its checks, each row scaled to its
        fullest bin, and the bound at 1. Equalities compare a residual with its tolerance. Ratios
        below $10^(-6)$ are drawn there.""",
        "claims-figure",
        "One row per claim on a logarithmic axis: histogram of ratios, worst ratios marked,"
        " vertical line at the bound.",
    )
    return "\n\n".join(
        [
            _introduction(claims),
            overview(claims),
            picture,
            *(section(topic, lines) for topic, lines in claims.topics().items()),
        ]
    )


def headline(claims: Claims) -> str:
    """How many claims are verified, in a few words."""
    if not claims:
        return NOT_MEASURED
    refuted, missing = claims.count("refuted"), claims.count("not measured")
    rest = [f"*{integer(refuted)} refuted*"] if refuted else []
    rest += [f"{integer(missing)} not measured"] if missing else []
    return f"{integer(claims.count('verified'))} verified" + "".join(f", {text}" for text in rest)


def _introduction(claims: Claims) -> str:
    checks = integer(sum(line.checked for line in claims)) if claims else NOT_MEASURED
    return rf"""
= Statement by statement

Every statement of the theory that the results above rest on is checked for itself:
{headline(claims)}, in {checks} checks. Each is held against exact solutions on instances drawn at
random and steered towards the largest ratio of measured to bound, on the instance that attains the
bound where it is called _tight_, and without the assumption it needs, where it must fail. A
_certificate_ is a proof in interval arithmetic for all parameters of a range. @claims-table and
@claims-figure show all of them; the sections that follow state them in turn.

Their tables have one row for every part of a statement and kind of check, with its worst check; of
a negative control, which must exceed its bound, the one that exceeds it least. An equality is a
residual beside its tolerance.

Statements are in the paper's notation, with its numbers of equations: $Y$ is the chain, $a_t =
alpha_t$, $g_t = 1 - a_t$, $W tilde N(0, I)$, and
the control $U_t = s_t + (sqrt(a_t) sigma_t\/g_t) v_t$ is in units of the score, $u^*$
the optimal one. $L_0$ and $L_1$ are Lipschitz constants of a function and of its gradient, with a
bar those of Lemma 3.2; $kappa_t = sqrt(a_t) sigma_t^2\/(beta_t g_t)$; and $B$, $a_k$ and $f_k$ are
a general noise map, a costate and a running cost. Instances are told by their number of steps $T$,
signal level $macron(alpha)$ from start to end, design constant $lambda$, score $s$ and reward $r$.
"""


def numbered(title: str) -> str:
    """A title with equations of the paper marked as such.

    >>> numbered("Theorem 2.8 (i), (14)")
    'Theorem 2.8 (i), P1 (14)'
    """
    return re.sub(r"(?<!\w)\((\d+)\)", r"P1 (\1)", title)


def overview(claims: Claims) -> str:
    """The table of all claims."""
    body: list[Sequence[str]] = []
    for topic, lines in claims.topics().items():
        body.append((f"{text(topic.title)} (@{_label(topic)})",))
        body += map(_row, lines)
    return Table(
        header=(
            "claim",
            "",
            "kind",
            "checks",
            r"worst \ ratio",
            r"to the \ sharper",
            "attained",
            r"fails \ without",
            r"certi- \ fied",
        ),
        rows=body,
        caption="""All claims. The worst ratio is the largest measured / bound over the drawn
            instances, to the stated constant and to the sharper one; below 0.1 it is marked loose.
            For an equality it is the residual over its tolerance. _Attained_ is the ratio of the
            extremal instance.""",
        label="claims-table",
        align="lllrrrrcc",
        widths=("1fr", *["auto"] * 8),
        long=True,
    ).markup


def _row(line: ClaimLine) -> Sequence[str]:
    marks = [r"$checkmark$" if found else NONE for found in (line.control, line.certified)]
    attained = NONE if line.attained is None else number(line.attained)
    sharp = NONE if line.ratio_sharp is None else _stacked(fraction_of_bound(line.ratio_sharp))
    return (
        text(numbered(line.title)),
        status(line),
        line.kind,
        integer(line.checked),
        _stacked(worst(line)),
        sharp,
        attained,
        *marks,
    )


def status(line: ClaimLine) -> str:
    """Verified, refuted or not measured."""
    if line.status not in ("verified", "refuted"):
        return NOT_MEASURED
    return "*refuted*" if line.status == "refuted" else "verified"


def worst(line: ClaimLine) -> str:
    """The worst ratio; only one to a bound can be loose."""
    if line.ratio is None:
        return NOT_MEASURED
    return fraction_of_bound(line.ratio) if line.compares_with_bound else number(line.ratio, 2)


def _stacked(ratio: str) -> str:
    return ratio.replace(" (", r" \ (")


def section(topic: TopicLine, lines: Sequence[ClaimLine]) -> str:
    """A topic: what is measured, the table of its statements with their checks, and what is worth
    telling of them.
    """
    body: list[Sequence[str]] = []
    for line in lines:
        body.append((f"*{text(numbered(line.title))}* ({_summary(line)}): {line.statement}",))
        body += [_part(part) for how in HOW for part in line.of_kind(how)]
    table = Table(
        header=("check", "checks", "measured", "bound", "ratio"),
        rows=body,
        caption="Statements and their checks.",
        label=f"checks-{lines[0].name.replace('_', '-')}",
        align="lrrrr",
        widths=("1fr", *["auto"] * 4),
        long=True,
    ).markup
    told = [_told(line) for line in lines]
    title = f"== {text(topic.title)} <{_label(topic)}>"
    return "\n\n".join([title, topic.measured, table, *told])


def _label(topic: TopicLine) -> str:
    """Of the section of a topic."""
    return f"claims-{topic.place}"


def _summary(line: ClaimLine) -> str:
    errors = f" ({text('; '.join(line.errors))})" if line.errors else ""
    return f"{status(line)}{errors}, {line.kind}"


def _part(part: PartLine) -> Sequence[str]:
    what = HOW[part.how] + (f": {numbered(part.part)}" if part.part else "")
    return what, integer(part.checked), number(part.measured), number(part.bound), _ratio(part)


def _ratio(part: PartLine) -> str:
    """Nothing where it says nothing: for a certificate, whose ends may have any sign, and for a
    bound that is zero.
    """
    if part.how == "certificate" or part.bound == 0:
        return NONE
    return (
        fraction_of_bound(part.ratio)
        if part.how in ("inequality", "sharper inequality")
        else number(part.ratio)
    )


def _told(line: ClaimLine) -> str:
    """Where the extremes are, and what was found, as a paragraph."""
    sentences = []
    if line.status == "refuted":
        sentences.append(f"*Refuted*, {line.check}, at {line.words}.")
    elif line.words:
        sentences.append(f"_Worst:_ {line.words}.")
    sharper = max(line.of_kind("sharper inequality"), key=lambda part: part.ratio, default=None)
    if sharper and sharper.words != line.words:
        sentences.append(f"_Worst for the sharper constant:_ {sharper.words}.")
    for how, what in (("attained", "Attained"), ("negative control", "Fails without")):
        sentences += [_where(what, part) for part in line.of_kind(how)]
    sentences += [f"_Found:_ {found}." for found in line.findings]
    if not sentences:
        return ""
    return (
        "#block(above: 0.6em, below: 0.6em)[#set text(size: 8.5pt); #set par(first-line-indent:"
        f" 0pt)\n*{text(numbered(line.title))}.* {' '.join(sentences)}]"
    )


def _where(what: str, part: PartLine) -> str:
    of = f" ({numbered(part.part)})" if part.part else ""
    return f"_{what}_{of}: {part.words}." if part.words else f"_{what}_{of}."
