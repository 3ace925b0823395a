"""What can be said about a picture of shapes: a grammar, what makes a caption true, and captions
that are wrong on purpose.

A caption names one thing ("a green triangle"), several alike ("four circles") or two different ones
("a circle and a square", "a star above a square"), each with or without a colour. It states up to
four *facts*: how many things there are, which shapes, which colours and where. Four kinds of
caption exercise four skills, those of the prompts "A green colored rabbit", "A cat and a dog",
"Four wolves in the park" and "A dog on the moon" of Han, Razaviyayn and Xu (arXiv 2412.18164v4,
section 5).
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import random
from collections.abc import Sequence
from typing import Literal

from socft.checks import InvalidProblem, meant, require

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "star")
RELATIONS = ("above", "below", "left of", "right of")
NUMBERS = {2: "two", 3: "three", 4: "four"}
WORDS = (
    "a",
    "and",
    *NUMBERS.values(),
    *COLOURS,
    *SHAPES,
    *(f"{shape}s" for shape in SHAPES),
    "above",
    "below",
    "left",
    "right",
    "of",
)

Skill = Literal["colour", "composition", "counting", "location"]
SKILLS: tuple[Skill, ...] = ("colour", "composition", "counting", "location")
FACT_OF_SKILL: dict[Skill, str] = {
    "colour": "colours",
    "composition": "shapes",
    "counting": "count",
    "location": "relation",
}
PROMPTS: dict[Skill, str] = {
    "colour": "a green triangle",
    "composition": "a circle and a triangle",
    "counting": "four circles",
    "location": "a triangle above a square",
}
"""What is fine-tuned for, a prompt for each skill: of those that differ in their shapes alone, ones
whose shapes the reward tells apart in the tiny model's own pictures, too (``quality.json``). A
circle and a square hardly differ when they are soft.
"""

# pixels one thing must lie beyond another; drawn relations keep the centres at least 13.6 apart
_MARGIN = 4.0


@dataclasses.dataclass(frozen=True)
class NamedShape:
    """A thing as a caption names it: a shape, with or without a colour."""

    shape: str
    colour: str | None = None

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}" if self.colour else self.shape


@dataclasses.dataclass(frozen=True)
class VisibleShape:
    """A thing as it lies in a picture; ``shape`` is None for a blot that has none of the shapes.

    Attributes:
        shape: one of `SHAPES` or None.
        colour: one of `COLOURS`.
        x: centre, pixels from the left.
        y: centre, pixels from the top.
        area: pixels covered.
    """

    shape: str | None
    colour: str
    x: float
    y: float
    area: float


@dataclasses.dataclass(frozen=True)
class Caption:
    """One statement: ``count`` things like ``first``, or ``first`` and ``second``, possibly in a
    relation.
    """

    first: NamedShape
    count: int = 1
    second: NamedShape | None = None
    relation: str | None = None

    def __str__(self) -> str:
        if self.second is not None:
            return f"a {self.first} {self.relation or 'and'} a {self.second}"
        return f"a {self.first}" if self.count == 1 else f"{NUMBERS[self.count]} {self.first}s"

    @property
    def things(self) -> tuple[NamedShape, ...]:
        """Every thing the caption names, one entry each."""
        return (self.first,) * self.count if self.second is None else (self.first, self.second)

    @property
    def skill(self) -> Skill:
        """What drawing the caption takes."""
        if self.second is not None:
            return "location" if self.relation else "composition"
        return "counting" if self.count > 1 else "colour"


def parse_caption(text: str) -> Caption:
    """The caption a text spells.

    Raises:
        InvalidProblem: the text is not a caption of this grammar.
    """
    caption = _BY_TEXT.get(" ".join(text.lower().split()))
    if caption is None:
        foreign = [word for word in text.lower().split() if word not in WORDS]
        reason = "its words are in no known order"
        if foreign:
            reason = f"{foreign[0]!r} is not one of its words"
        example = (
            f"say for instance {difflib.get_close_matches(text.lower(), _BY_TEXT, 1, 0.0)[0]!r}."
        )
        remedy = meant(foreign[0], WORDS, example) if foreign else example
        raise InvalidProblem(f"{text!r} is no caption of the shape world: {reason}; {remedy}")
    assert caption is not None
    return caption


def facts(caption: Caption, seen: Sequence[VisibleShape]) -> dict[str, bool]:
    """Which of the facts a caption states are true of a picture.

    ``count`` and ``shapes`` are always stated, ``colours`` when a colour is named and ``relation``
    when there is one. Facts do not depend on each other: three green circles have the right colour
    and the wrong number for "a green circle".
    """
    stated = {
        "count": len(seen) == len(caption.things),
        "shapes": {thing.shape for thing in seen} == {named.shape for named in caption.things},
    }
    coloured = [named for named in set(caption.things) if named.colour]
    if coloured:
        stated["colours"] = all(
            _coloured(named, seen, alone=caption.second is None) for named in coloured
        )
    if caption.second is not None and caption.relation is not None:
        stated["relation"] = _related(
            caption.first.shape, caption.second.shape, caption.relation, seen
        )
    return stated


def _coloured(named: NamedShape, seen: Sequence[VisibleShape], alone: bool) -> bool:
    """Whether the things a name refers to have its colour: all of them, and there is at least
    one.
    """
    meant = [thing for thing in seen if alone or thing.shape == named.shape]
    return bool(meant) and all(thing.colour == named.colour for thing in meant)


def _related(first: str, second: str, relation: str, seen: Sequence[VisibleShape]) -> bool:
    """Whether the largest ``first`` lies where it should from the largest ``second``, mostly in
    that direction.
    """
    one = max(
        (thing for thing in seen if thing.shape == first),
        key=lambda thing: thing.area,
        default=None,
    )
    other = max(
        (thing for thing in seen if thing.shape == second),
        key=lambda thing: thing.area,
        default=None,
    )
    if one is None or other is None:
        return False
    right, down = one.x - other.x, one.y - other.y
    along = {"above": -down, "below": down, "left of": -right, "right of": right}[relation]
    return along > _MARGIN and along >= max(abs(right), abs(down))


def every_caption(skill: Skill) -> tuple[Caption, ...]:
    """All captions of a skill, those without colours first."""
    names = [NamedShape(shape, colour) for colour in (None, *COLOURS) for shape in SHAPES]
    if skill == "colour":
        return tuple(Caption(name) for name in names)
    if skill == "counting":
        return tuple(Caption(name, count) for name in names for count in NUMBERS)
    pairs = [
        (a, b)
        for a, b in itertools.product(names, names)
        if a.shape != b.shape and bool(a.colour) == bool(b.colour)
    ]
    relations = RELATIONS if skill == "location" else (None,)
    return tuple(
        Caption(a, second=b, relation=relation) for a, b in pairs for relation in relations
    )


def draw_caption(rng: random.Random, plain: float = 0.5) -> Caption:
    """A random caption: the skills equally often, without colours with probability ``plain`` (a
    lone thing: a third of it).
    """
    skill = rng.choice(SKILLS)
    without = rng.random() < (plain / 3 if skill == "colour" else plain)
    return rng.choice(_PLAIN[skill] if without else _COLOURED[skill])


@dataclasses.dataclass(frozen=True)
class CaptionErrors:
    """How often the picture drawn for a caption departs from it: the flaws of a training set, one
    probability per skill.

    Attributes:
        colour: each named colour is drawn as another one.
        composition: one of two things joined by "and" is drawn as another shape, possibly twice the
            same.
        counting: of several things one too many or one too few is drawn, between one and four.
        location: two things in a relation are drawn a quarter turn away.
        open: a colour that is not named is drawn at random anew; no fact depends on it.
    """

    colour: float = 0.0
    composition: float = 0.0
    counting: float = 0.0
    location: float = 0.0
    open: float = 0.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            require(0 <= value <= 1, f"noise {name} = {value}; a probability lies in [0, 1].")

    def drawn(self, caption: Caption, rng: random.Random) -> Caption:
        """What is drawn when the caption is asked for."""
        first, second = (
            self._recoloured(caption.first, rng),
            caption.second and self._recoloured(caption.second, rng),
        )
        if second is None:
            return Caption(first, self._recounted(caption.count, rng))
        if caption.relation is not None:
            return Caption(first, second=second, relation=self._moved(caption.relation, rng))
        if rng.random() < self.composition:
            if rng.random() < 0.5:
                first = _reshaped(first, rng)
            else:
                second = _reshaped(second, rng)
        return Caption(first, second=second)

    def _recounted(self, count: int, rng: random.Random) -> int:
        if count == 1 or rng.random() >= self.counting:
            return count
        return rng.choice([n for n in (count - 1, count + 1) if n <= max(NUMBERS)])

    def _moved(self, relation: str, rng: random.Random) -> str:
        beside = RELATIONS[2:] if relation in RELATIONS[:2] else RELATIONS[:2]
        return rng.choice(beside) if rng.random() < self.location else relation

    def _recoloured(self, named: NamedShape, rng: random.Random) -> NamedShape:
        if named.colour is None:
            return (
                dataclasses.replace(named, colour=rng.choice(COLOURS))
                if rng.random() < self.open
                else named
            )
        if rng.random() >= self.colour:
            return named
        return dataclasses.replace(
            named, colour=rng.choice([colour for colour in COLOURS if colour != named.colour])
        )


def _reshaped(named: NamedShape, rng: random.Random) -> NamedShape:
    return dataclasses.replace(
        named, shape=rng.choice([shape for shape in SHAPES if shape != named.shape])
    )


_EVERY = {skill: every_caption(skill) for skill in SKILLS}
_PLAIN = {
    skill: [c for c in captions if c.first.colour is None] for skill, captions in _EVERY.items()
}
_COLOURED = {
    skill: [c for c in captions if c.first.colour is not None] for skill, captions in _EVERY.items()
}
_BY_TEXT = {str(caption): caption for captions in _EVERY.values() for caption in captions}
