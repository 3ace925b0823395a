"""Prompts from files: a line each, JSON, or a data set of the Hugging Face hub on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from socft.checks import InvalidProblem, require
from socft.files import read_json, read_text

COLUMNS = ("prompt", "caption", "text")
"""Where a table has prompts, the first that it has."""
FORMS = (
    "give a list of prompts, or a file of them: .txt with one per line, .json, .jsonl, .parquet,"
    " .arrow, or the folder of a data set"
)
AGAIN = "write it again"


def read_prompts(name: str) -> list[str]:
    """The prompts of a file or of a data set's folder, in their order, without empty lines.

    Raises:
        InvalidProblem: there is no such file, it is damaged, or it has no prompts.
    """
    file = Path(name)
    require(_is_there(name), f"problem.prompts = {name!r:.150} is no file; {FORMS}.")
    found = _of_folder(file) if file.is_dir() else _of_file(file)
    require(len(found) > 0, f"{file} holds no prompts; {FORMS}.")
    return found


def _is_there(name: str) -> bool:
    """Whether a text names a file or a folder; not all can."""
    try:
        return name != "" and Path(name).exists()
    except (OSError, ValueError):
        return False


def _of_file(file: Path) -> list[str]:
    if file.suffix == ".txt":
        return [line.strip() for line in read_text(file, AGAIN).splitlines() if line.strip()]
    if file.suffix == ".json":
        return _of_rows(read_json(file, AGAIN, strict=False), file)
    if file.suffix == ".jsonl":
        lines = [line for line in read_text(file, AGAIN).splitlines() if line.strip()]
        return _of_rows([_parsed(line, file) for line in lines], file)
    require(file.suffix in (".parquet", ".arrow"), f"problem.prompts = '{file}'; {FORMS}.")
    return _of_tables([file])


def _of_folder(folder: Path) -> list[str]:
    """A saved data set, or the one split of several."""
    files = sorted(each for kind in ("arrow", "parquet") for each in folder.rglob(f"*.{kind}"))
    require(bool(files), f"{folder} holds no .arrow and no .parquet; {FORMS}.")
    parts = sorted({each.parent for each in files})
    require(
        len(parts) == 1,
        f"{folder} holds several splits, {', '.join(each.name for each in parts)}; give the folder"
        " of one.",
    )
    return _of_tables(files)


def _of_tables(files: Sequence[Path]) -> list[str]:
    try:
        from pyarrow import (  # pyright: ignore[reportMissingImports]
            ArrowInvalid,
            ipc,
            parquet,
        )
    except ModuleNotFoundError as error:
        raise InvalidProblem(
            f"problem.prompts = '{files[0].parent}' is read by pyarrow, which is not"
            " installed; run: pip install pyarrow, or give a file .txt or .json."
        ) from error
    prompts: list[str] = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                table = parquet.read_table(file)
            else:
                with file.open("rb") as stream:
                    table = ipc.open_stream(stream).read_all()
        except (ArrowInvalid, OSError) as error:
            raise InvalidProblem(f"{file} is damaged; copy it again.") from error
        prompts += _of_rows(table.column(_column(table.column_names, file)).to_pylist(), file)
    return prompts


def _of_rows(rows: Any, file: Path) -> list[str]:
    """Texts, or tables with one."""
    require(isinstance(rows, list), f"{file} is no list; write a list of prompts.")
    tables = [row for row in rows if isinstance(row, dict)]
    column = _column(tables[0], file) if tables else ""
    found = [row.get(column) if isinstance(row, dict) else row for row in rows]
    bad = [i for i, each in enumerate(found) if not isinstance(each, str) or not each.strip()]
    require(not bad, f"entry {bad[:1]} of {file} is no prompt; write texts, or leave it out.")
    return [str(each) for each in found]


def _column(names: Iterable[str], file: Path) -> str:
    there = list(names)
    found = [name for name in COLUMNS if name in there]
    require(
        bool(found),
        f"{file} has the columns {', '.join(there)[:200]}; name that of the prompts"
        f" {' or '.join(COLUMNS)}.",
    )
    return found[0]


def _parsed(line: str, file: Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InvalidProblem(f"{file} has a line that is no JSON; {AGAIN}.") from error
