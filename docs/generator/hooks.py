"""What the site generator calls: pages that are made, their place in the navigation, pictures."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs.generator import api, claims, estimators, leaderboard, tutorials
from docs.generator.pages import Page, navigation

ROOT = Path(__file__).resolve().parents[2]
COPIED = {"reports": ("*.pdf", "figures/*.svg"), "reports/records": ("stable_diffusion/*.png",)}
"""Committed files that the site shows, by folder."""
FIRST = 2
"""Entries of the navigation that stand before the tutorials."""
_MADE: dict[str, list[Page]] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the pages and place them in the navigation."""
    _MADE.update(
        Tutorials=tutorials.pages(ROOT, ROOT / "build" / "tutorials"),
        Claims=claims.pages(ROOT),
        Estimators=[*estimators.pages(ROOT), *leaderboard.pages()],
        Reference=api.pages(ROOT),
    )
    assert config.nav is not None
    made = [{title: navigation(found)} for title, found in _MADE.items()]
    config.nav = [*config.nav[:FIRST], made[0], *config.nav[FIRST:], *made[1:]]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and what is copied; tutorials take the place of what they are made of."""
    made = [page for found in _MADE.values() for page in found]
    for source in [files.get_file_from_path(page.path) for page in made]:
        if source is not None:
            files.remove(source)
    for page in made:
        files.append(File.generated(config, page.path, content=page.content))
    for folder, patterns in COPIED.items():
        for file in sorted(each for pattern in patterns for each in (ROOT / folder).glob(pattern)):
            place = file.relative_to(ROOT).as_posix()
            files.append(File.generated(config, place, abs_src_path=str(file)))
    return files
