"""What is found by its name on the command line, or lies in a file of the user's."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Plugins:
    """What the modules of a package define: every module is one, or every folder with a module of a
    given name.
    """

    package: str
    what: str
    attribute: str
    module: str = ""

    @property
    def folders(self) -> list[Path]:
        """Folders of the package."""
        return [Path(each) for each in importlib.import_module(self.package).__path__]

    @property
    def names(self) -> list[str]:
        """Names of the modules, or of the packages that contain the module named `module`."""
        folders = self.folders
        found = {each.name: each.ispkg for each in pkgutil.iter_modules(map(str, folders))}
        if self.module:
            return sorted(
                n for n in found if any((f / n / f"{self.module}.py").is_file() for f in folders)
            )
        return sorted(
            name for name, is_package in found.items() if not is_package and name != "conftest"
        )

    def find(self, name: str) -> Any:
        """The object of the module ``name``; for what is no name but a file ``NAME.py``, or a
        module, the one that is defined there.

        Raises:
            InvalidProblem: there is no such module, or it defines none.
        """
        from socft.checks import InvalidProblem, require_known
        from socft.study.import_path import import_module, is_foreign

        if not self.module and is_foreign(name):
            module = import_module(name)
            if not hasattr(module, self.attribute):
                raise InvalidProblem(
                    f"{name} defines no {self.attribute}; name the {self.what} so."
                )
            return getattr(module, self.attribute)
        module = name.replace("-", "_")
        require_known(module, self.names, self.what, "" if self.module else "FILE.py")
        path = ".".join(filter(None, [self.package, module, self.module]))
        return getattr(importlib.import_module(path), self.attribute)

    def about(self, name: str) -> str:
        """The first paragraph of the docstring of a module, in one line; nothing is imported."""
        file = Path(name)
        if file.suffix != ".py":
            module = Path(name.replace("-", "_"), self.module).with_suffix(".py")
            file = next((f / module for f in self.folders if (f / module).is_file()), file)
        try:
            text = ast.get_docstring(ast.parse(file.read_bytes())) or ""
        except (OSError, SyntaxError, ValueError):
            return ""
        return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


STUDIES = Plugins("toy.studies", "study", "STUDY")
REPORTS = Plugins("socft.report", "report", "REPORT", module="report")
CLAIMS = Plugins("verify", "claim", "CLAIM")


def studies(name: str | None) -> str:
    """What a study asks and how long it takes; of all studies for None."""
    from toy.durations import MINUTES

    if name is not None:
        asked = STUDIES.about(name)
        took = MINUTES.get(name.replace("-", "_"))
        lasts = f"\n  {_duration(took)}" if took else ""
        return f"Study {name}:\n  {asked}{lasts}" if asked else ""
    lines = []
    for each in STUDIES.names:
        question = STUDIES.about(each).partition("?")[0] + "?"
        took = MINUTES.get(each)
        lines.append(f"  {each}: {question}" + (f" {_duration(took)}" if took else ""))
    return "\n".join(["Studies:", *lines])


def _duration(minutes: tuple[float, float]) -> str:
    quick, full = (f"{max(each, 1):.0f} min" for each in minutes)
    return f"(two cores: {quick} with --quick, {full} without)"
