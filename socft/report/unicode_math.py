"""One line of unicode mathematics, as a claim states it, in Typst markup.

Symbols, letters and numbers become inline mathematics, words stay prose:
``sup |∇V⁽ᵐ⁾| ≤ √(2/π) L0V_t for every m``. Two letters or more are a word unless listed here. The
Lipschitz constants of the claims are ``L0V_t`` for :math:`L_0(V_t)` and ``Lb0_t`` for the iterates'
:math:`\\bar L_0(V_t)`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Literal

from socft.report.typeset import text

Kind = Literal["prose", "math", "script", "space"]

OPERATORS = (
    "Hess",
    "Jac",
    "KL",
    "clip",
    "cos",
    "det",
    "erf",
    "exp",
    "inf",
    "ker",
    "log",
    "max",
    "min",
    "sign",
    "sin",
    "sup",
    "tanh",
    "tr",
)
GREEK = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "eta",
    "kappa",
    "lambda",
    "mu",
    "omega",
    "phi",
    "rho",
    "sigma",
    "tau",
    "theta",
)
NAMES = {
    **{name: f'op("{name}")' for name in OPERATORS},
    **{name: name for name in GREEK},
    **{"BB": "B B", "Bv": "B v", "GV": "G V", "Lb": "macron(L)", "dt": "d t", "lam": "lambda"},
}
UPPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱʲᵏᵐᵗᵀ", "0123456789+−()nijkmtT", strict=True))
LOWER = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+−", strict=True))
SYMBOLS = {
    **{"<=": "≤", ">=": "≥", "!=": "≠", "->": "→", "-": "−", "⊥": "perp", "‖": "parallel"},
    **{"/": r"\/", "½": r"1\/2", "Σ": "sum", "E": "bb(E)", ":": 'class("punctuation", :)'},
}
PIPES = {
    "open": 'class("opening", |)',
    "close": 'class("closing", |)',
    "given": 'class("relation", |)',
}
PUNCTUATION = {",": ",", ";": ";", ".": ".", SYMBOLS[":"]: ":", r"\)": ")"}
"""After a word these are prose."""
BREAKS = frozenset({",", ";", SYMBOLS[":"]})
SPACED = frozenset("=<>≤≥≠−+·→↛⇒⇔≻≺∘∞") | {"perp", "parallel", PIPES["given"], *BREAKS}
"""What the typesetter spaces by itself; between other symbols a space of the line is a thin one."""
TOKEN = re.compile(
    rf"""(?P<space>\s+)
    |(?P<constant>L(?P<bar>b?)(?P<order>[01])(?P<of>[Vsruv]?)(?![A-Za-z])(?:_(?:\{{(?P<long>[^{{}}]*)\}}|(?P<short>\w)))?)
    |(?P<extreme>[Α-ω](?:max|min))
    |(?P<script>[_^](?:\{{[^{{}}]*\}}|[A-Za-z]{{3,}}|[\w*]))
    |(?P<upper>[{"".join(UPPER)}]+)
    |(?P<lower>[{"".join(LOWER)}]+)
    |(?P<star>(?<=[\w⁾])[*⊥])
    |(?P<prime>(?<=[\w)])'+(?![A-Za-z]))
    |(?P<article>\b[aA](?=\ [a-z]{{2}})|\((?=[a-z]{{4}}))
    |(?P<word>[A-Za-z]{{2,}}(?:['’-][A-Za-z]+|_[A-Za-z]{{2,}})*|(?<=\d)-[A-Za-z]+)
    |(?P<root>√)
    |(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)
    |(?P<pipe>\|)
    |(?P<symbol><=|>=|!=|->|.)""",
    re.VERBOSE,
)


def markup(line: str) -> str:
    """The line as Typst markup; lines may break in front of words and after commas."""
    pieces: list[str] = []
    formula: list[str] = []
    gap = False
    for kind, source in _atoms(line):
        if kind in ("space", "prose") and formula and (kind == "prose" or formula[-1] in BREAKS):
            pieces.append(f"${' '.join(formula)}$")
            formula.clear()
            if kind == "prose" and gap:
                pieces.append(" ")
        if kind == "space":
            gap = True
            pieces += [] if formula else [" "]
        elif kind == "prose" or (source in PUNCTUATION and pieces and not formula and not gap):
            pieces.append(PUNCTUATION.get(source, source))
            gap = False
        else:
            if kind == "math" and formula and _needs_space(formula[-1], source, gap):
                formula.append("thin")
            _append(formula, kind, source)
            gap = False
    pieces += [f"${' '.join(formula)}$"] if formula else []
    return "".join(_prose(pieces)).strip()


def _prose(pieces: list[str]) -> Iterator[str]:
    """Words that follow each other as one piece."""
    for formula, group in itertools.groupby(pieces, key=lambda piece: piece.startswith("$")):
        joined = "".join(group)
        words = joined.strip()
        if formula or not words:
            yield joined
        else:
            yield (
                joined[: len(joined) - len(joined.lstrip())]
                + text(words)
                + joined[len(joined.rstrip()) :]
            )


def _needs_space(before: str, source: str, gap: bool) -> bool:
    if before.startswith("op(") and source == PIPES["open"]:
        return True
    return (
        gap
        and not {before, source} & SPACED
        and not before.startswith("op(")
        and not source.startswith("op(")
    )


def _inline(line: str) -> str:
    """The line as mathematics only, words in quotes."""
    formula: list[str] = []
    for kind, source in _atoms(line):
        if kind != "space":
            _append(formula, kind, f'"{source}"' if kind == "prose" else source)
    return " ".join(formula)


def _append(formula: list[str], kind: Kind, source: str) -> None:
    if kind == "script":
        formula[-1:] = [(formula[-1] if formula else '""') + source]
    else:
        formula.append(source)


def _atoms(line: str) -> Iterator[tuple[Kind, str]]:
    roles, position = _pipes(line), 0
    while position < len(line):
        found = TOKEN.match(line, position)
        assert found is not None, "the last alternative matches any character"
        name, token, position = str(found.lastgroup), found.group(), found.end()
        if found["constant"]:
            yield "math", _constant(found)
        elif name == "pipe":
            yield "math", PIPES[roles[found.start()]]
        elif name == "root":
            length = _radicand(line[position:])
            inside = line[position : position + length]
            yield "math", f"sqrt({_inline(inside[1:-1] if inside.startswith('(') else inside)})"
            position += length
        else:
            yield _simple(name, token)


def _simple(name: str, token: str) -> tuple[Kind, str]:
    match name:
        case "space":
            return "space", " "
        case "extreme":
            return "math", f'{token[0]}_("{token[1:]}")'
        case "script":
            return "script", f"{token[0]}({_inline(token[1:].strip('{}'))})"
        case "upper":
            return (
                "script",
                f"^({_inline(''.join(UPPER[c] for c in token)) if token != 'ᵀ' else 'top'})",
            )
        case "lower":
            return "script", f"_({''.join(LOWER[c] for c in token)})"
        case "star":
            return "script", f"^{'*' if token == '*' else 'perp'}"
        case "prime":
            return "script", token
        case "article":
            return "prose", token
        case "word":
            return ("math", NAMES[token]) if token in NAMES else ("prose", token.replace("_", " "))
        case "number":
            mantissa, _, exponent = token.partition("e")
            return "math", f"{mantissa} times 10^({int(exponent)})" if exponent else mantissa
        case _:
            escaped = (
                token
                if token.isalnum() or ord(token[0]) > 127 or token in ".,:;+=<>!%?"
                else "\\" + token
            )
            return "math", SYMBOLS.get(token, escaped)


def _constant(found: re.Match[str]) -> str:
    letter = "macron(L)" if found["bar"] else "L"
    index = found["long"] or found["short"] or ""
    of = found["of"] or ("V" if found["bar"] else "")
    script = f"_({_inline(index)})" if index else ""
    return (
        f"{letter}_{found['order']} ({of}{script})"
        if of
        else f"{letter}_({found['order']}){script and f'^({_inline(index)})'}"
    )


def _radicand(rest: str) -> int:
    """The length of what stands under a root: a group in parentheses, or one symbol with its index."""
    if not rest.startswith("("):
        found = re.match(r"(?:\d+|.)(?:_\{[^{}]*\}|_\w)?", rest)
        return found.end() if found else 0
    depth = 0
    for position, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position + 1
    return len(rest)


def _pipes(line: str) -> dict[int, Literal["open", "close", "given"]]:
    """What each bar does: open or close a norm, or separate a condition. Bars of a norm are in the
    same brackets.
    """
    roles: dict[int, Literal["open", "close", "given"]] = {}
    opened: list[int | None] = [None]
    for position, character in enumerate(line):
        if character in "([{":
            opened.append(None)
        elif character in ")]}" and len(opened) > 1:
            opened.pop()
        elif character == "|":
            spaced = line[position - 1 : position] in ("", " ") and line[
                position + 1 : position + 2
            ] in ("", " ")
            if opened[-1] is not None:
                roles[position], opened[-1] = "close", None
            elif spaced or not _closes(line[position + 1 :]):
                roles[position] = "given"
            else:
                roles[position], opened[-1] = "open", position
    return roles


def _closes(rest: str) -> bool:
    """Whether another bar follows before the brackets around end."""
    depth = 0
    for character in rest:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0 or (depth == 0 and character == "|"):
            return depth == 0
    return False
