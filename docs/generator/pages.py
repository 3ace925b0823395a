"""What a generated page is, and where pages stand in the site."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of the site that is made when it is built.

    Attributes:
        path: its file below the sources, such as ``claims/lemma_2_5.md``.
        title: what the navigation calls it.
        content: Markdown, or what a file that is no page holds.
        section: the part of the navigation that it is in; none for what is not in it.
    """

    path: str
    title: str
    content: str | bytes
    section: str | None = None


def navigation(pages: Sequence[Page]) -> list[Mapping[str, Any]]:
    """Pages by section, in order of appearance; those of the section "" come first, by
    themselves.
    """
    sections: dict[str, list[Mapping[str, Any]]] = {}
    for page in pages:
        if page.section is not None:
            sections.setdefault(page.section, []).append({page.title: page.path})
    alone = sections.pop("", [])
    return [*alone, *({title: entries} for title, entries in sections.items())]


def slug(name: str) -> str:
    """A name as part of an address.

    >>> slug("TD(0.9), fitted costate")
    'td-0-9-fitted-costate'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
