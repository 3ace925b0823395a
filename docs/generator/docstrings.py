"""Docstrings as the site shows them: mathematics between dollars."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object

from docs.generator.mathematics import dollars


class Mathematics(Extension):
    """Rewrites the roles of reStructuredText, which docstrings use for mathematics alone."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = dollars(obj.docstring.value)
