"""Imports run one way, between the packages, between the rooms of socft and between modules; what
is found by its name has the name, and no two classes have one.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from tests.support.imports import Graph, Source, cycle, graph, read

ROOT = Path(__file__).resolve().parents[1]
ABOVE = ("sd_experiments", "toy", "verify")

ALLOWED = {
    "socft.cli": ABOVE,
    "socft.cli.commands": ABOVE,
    "socft.cli.plugins": ("toy",),
    "toy.studies.tightness": ("verify",),
} | {
    f"toy.tightness.{name}": ("verify",)
    for name in ("families", "lengths", "measurements", "verdicts")
}
"""Modules that may import another package than socft: the command line puts all together, and the
tightness study searches the instances of the claims.
"""

LAYERS = (
    "checks readable",
    "plot",
    "probing",
    "files schema",
    "schedule records",
    "reference study",
    "regression",
    "policy reward sde",
    "problem density theory",
    "path metrics flow conform",
    "finite",
    "path_measure guidance truth",
    "costates",
    "estimators",
    "train",
    "measurement pi_ft trust_region report",
    "cli",
)
"""The rooms of socft, its modules and folders, from the ground up: each imports from lower ones."""

FULLEST = 25
"""Modules in a folder."""

FILE_PER_ITEM = {"verify"}
"""A folder with a file per claim, which grows."""

LONGEST_FILE, LONGEST_FUNCTION = 500, 60
"""In lines."""


@functools.cache
def written() -> list[Source]:
    """What is written in the packages; read by the tests alone, not by all that collect them."""
    return read(ROOT, "socft", *ABOVE)


@functools.cache
def imports() -> Graph:
    """The imports that there are."""
    return graph(written())


def between_packages(arrows: Graph) -> list[str]:
    """Imports from one package to another that is not socft, except those allowed."""
    found = []
    for module, imported in arrows.items():
        own = module.partition(".")[0]
        fine = {own, "socft", *ALLOWED.get(module, ())}
        found += [f"{module} -> {each}" for each in imported if each.partition(".")[0] not in fine]
    return sorted(found)


def up(arrows: Graph) -> list[str]:
    """Imports inside socft from a room to one that is not below it."""
    floor = {f"socft.{room}": k for k, layer in enumerate(LAYERS) for room in layer.split()}
    rooms = {module: ".".join(module.split(".")[:2]) for module in arrows}
    return sorted(
        f"{module} -> {each}"
        for module, imported in arrows.items()
        for each in imported
        if rooms[module] in floor and rooms[each] in floor and rooms[each] != rooms[module]
        if floor[rooms[each]] >= floor[rooms[module]]
    )


def with_import(module: str, imported: str) -> Graph:
    """The imports that there are, and one more."""
    assert {module, imported} <= set(imports())
    return imports() | {module: imports()[module] | {imported}}


def test_packages_import_socft_alone_and_socft_none_of_them():
    assert between_packages(imports()) == []


def test_every_room_of_socft_has_a_floor():
    rooms = {module.split(".")[1] for module in imports() if module.startswith("socft.")}
    named = Counter(" ".join(LAYERS).split())
    assert rooms == set(named)
    assert max(named.values()) == 1


def test_rooms_import_from_lower_floors():
    assert up(imports()) == []


@pytest.mark.parametrize(
    ("found", "module", "imported"),
    [
        (between_packages, "socft.reward", "toy.bench"),
        (between_packages, "socft.report.base", "sd_experiments.config"),
        (between_packages, "sd_experiments.config", "toy.bench"),
        (between_packages, "sd_experiments.config", "verify.support.claims"),
        (between_packages, "toy.bench", "verify.support.claims"),
        (between_packages, "verify.contraction", "toy.problems.base"),
        (up, "socft.problem", "socft.truth.quadrature"),
        (up, "socft.costates.adjoint", "socft.estimators.base"),
        (up, "socft.theory.beta", "socft.density.mixture"),
        (up, "socft.study.runner", "socft.report.base"),
    ],
)
def test_an_import_that_runs_up_is_found(
    found: Callable[[Graph], list[str]], module: str, imported: str
):
    assert found(with_import(module, imported)) == [f"{module} -> {imported}"]


def defined_twice(sources: Sequence[Source]) -> dict[str, list[str]]:
    """Public classes of one name in several modules, or twice in one."""
    modules = [(name, each.name) for each in sources for name in each.classes]
    twice = {name for name, count in Counter(name for name, _ in modules).items() if count > 1}
    return {name: [module for each, module in modules if each == name] for name in sorted(twice)}


def test_every_public_class_has_a_name_of_its_own():
    assert defined_twice(written()) == {}


def test_a_second_class_of_a_name_is_found():
    tree = ast.parse("class Report: ...\nclass _Report: ...\nclass Unseen: ...")
    second = Source("toy.report", ROOT / "toy" / "report.py", tree)
    assert defined_twice([*written(), second]) == {"Report": ["socft.report.base", "toy.report"]}


def test_no_ring_of_modules():
    assert cycle(imports()) == []


def test_a_ring_of_modules_is_found():
    ring = cycle(with_import("socft.density.base", "socft.density.mixture"))
    assert {"socft.density.base", "socft.density.mixture"} <= set(ring)


def test_imports_are_read_where_they_stand(tmp_path: Path):
    (tmp_path / "house" / "room").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "door": "import house.room.table\n",
        "room/__init__": "",
        "room/table": "def top():\n    from house import door\n    from .. import door\n",
        "room/chair": "from .table import top\nimport torch\n",
    }.items():
        (tmp_path / "house" / f"{name}.py").write_text(text)
    arrows = graph(read(tmp_path, "house"))
    assert arrows["house.door"] == {"house.room.table"}
    assert arrows["house.room.table"] == {"house.door"}
    assert arrows["house.room.chair"] == {"house.room.table"}
    assert set(cycle(arrows)) == {"house.door", "house.room.table"}


def crowded(files: Sequence[Path]) -> set[str]:
    """Folders of more modules than are looked over."""
    modules = Counter(each.parent.as_posix() for each in files if each.stem != "__init__")
    return {folder for folder, count in modules.items() if count > FULLEST}


def test_no_folder_is_crowded():
    rooms = ("socft", *ABOVE, "tests", "docs")
    files = [file.relative_to(ROOT) for room in rooms for file in (ROOT / room).rglob("*.py")]
    assert crowded(files) <= FILE_PER_ITEM


def test_a_crowded_folder_is_found():
    full = [Path("toy/room") / f"m{i}.py" for i in range(FULLEST + 1)]
    assert crowded(full) == {"toy/room"}
    assert crowded([*full[1:], Path("toy/room/__init__.py")]) == set()


def too_long(sources: Sequence[Source]) -> list[str]:
    """Modules and functions that are longer than is read at once."""
    files = [
        each.name
        for each in sources
        if max((node.end_lineno or 0 for node in each.tree.body), default=0) > LONGEST_FILE
    ]
    return files + [
        f"{each.name}.{node.name}"
        for each in sources
        for node in each.nodes
        if isinstance(node, ast.FunctionDef)
        and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    ]


def test_no_module_and_no_function_is_long():
    assert too_long(written()) == []


def test_what_is_long_is_found():
    code = "def f():\n" + "    pass\n" * (LONGEST_FUNCTION - 1)
    files = {"kept": code, "grown": code + "    pass\n", "whole": "x = 0\n" * (LONGEST_FILE + 1)}
    made = [Source(f"toy.{k}", ROOT / "toy" / f"{k}.py", ast.parse(v)) for k, v in files.items()]
    assert too_long(made) == ["toy.whole", "toy.grown.f"]


@pytest.mark.parametrize(
    ("folder", "attribute", "others"),
    [("toy.studies", "STUDY", set()), ("verify", "CLAIM", {"verify.conftest"})],
)
def test_what_is_found_by_name_has_it(folder: str, attribute: str, others: set[str]):
    missing = {
        each.name
        for each in written()
        if each.folder == folder and each.file.stem != "__init__" and attribute not in each.assigned
    }
    assert missing == others


MODE = {"open": 1, "os.fdopen": 1, "io.open": 1, ".open": 0}
"""Where calls that open a file say how."""
ELSE = ("os.open", "Image.open")
"""Calls of that name that open nothing as text."""


def depending_on_locale(nodes: Iterable[ast.AST]) -> list[int]:
    """Lines that read or write text in whatever encoding the locale says."""
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if _depends_on_locale(call)]


def _depends_on_locale(call: ast.Call) -> bool:
    named = {each.arg: each.value for each in call.keywords}
    whole = ast.unparse(call.func)
    method = "." + whole.rpartition(".")[2] if "." in whole else whole
    if "encoding" in named or whole in ELSE:
        return False
    if method in (".read_text", ".write_text"):
        return True
    if whole.startswith("subprocess."):
        return "text" in named
    place = MODE.get(whole, MODE.get(method))
    if place is None:
        return False
    mode = named.get("mode", call.args[place] if len(call.args) > place else None)
    return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))


def test_text_is_utf_8_whatever_the_locale():
    found = {each.name: depending_on_locale(each.nodes) for each in written()}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("code", "depends"),
    [
        ("file.read_text()", True),
        ("file.read_text(errors='replace')", True),
        ("file.read_text(encoding='utf-8')", False),
        ("file.write_text(content)", True),
        ("file.open()", True),
        ("file.open('a')", True),
        ("file.open('ab')", False),
        ("open(file)", True),
        ("open(file, 'w')", True),
        ("open(file, 'rb')", False),
        ("open(file, mode='rb')", False),
        ("open(file, 'w', encoding='utf-8')", False),
        ("os.fdopen(handle, 'w')", True),
        ("os.fdopen(handle, 'wb')", False),
        ("os.open(file, os.O_RDONLY)", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, text=True, encoding='utf-8')", False),
        ("subprocess.run(command)", False),
        ("study.run()", False),
    ],
)
def test_text_in_the_encoding_of_the_locale_is_found(code: str, depends: bool):
    assert bool(depending_on_locale(ast.walk(ast.parse(code)))) == depends
