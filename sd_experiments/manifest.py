"""Folders that know the digests of their files, so that what was damaged or mixed up is named and
not used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from socft.checks import InvalidProblem, require
from socft.files import read_json, reason, write_atomically

MANIFEST = "sha256.json"


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Fill a new folder, add the digests of its files, and put it in the place of the old one,
    which stays where that fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        fill(new)
        for file in new.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        write_atomically(new / MANIFEST, manifest(new))
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                shutil.move(old, folder)
            raise


def manifest(folder: Path) -> bytes:
    """The digests of the files of a folder, as JSON."""
    digests = {name: digest(folder / name) for name in _names(folder)}
    return (json.dumps(digests, indent=2) + "\n").encode()


def verify(folder: Path, remedy: str) -> None:
    """Compare every file of a folder with its digest.

    Args:
        folder: a folder that holds its `manifest`.
        remedy: what to do about damage, for the message.

    Raises:
        InvalidProblem: the manifest or one of the files is missing, or differs from what was saved,
            or there is a file that was not.
    """
    file = folder / MANIFEST
    require(
        file.is_file(),
        f"{file} does not exist, so {folder} holds nothing that was saved; {remedy}.",
    )
    expected, found = read_json(file, remedy), _names(folder)
    whole = isinstance(expected, dict) and all(isinstance(each, str) for each in expected.values())
    require(whole, f"{file} is damaged: it holds no digests by name; {remedy}.")
    for name in expected:
        require(name in found, f"{folder / name} is missing; {remedy}.")
    for name in found:
        require(name in expected, f"{folder / name} is not among the files of {file}; {remedy}.")
        try:
            same = digest(folder / name) == expected[name]
        except OSError as error:
            raise InvalidProblem(
                f"{folder / name} cannot be read ({reason(error)}); {remedy}."
            ) from error
        require(same, f"{folder / name} is not the file that was saved; {remedy}.")


def digest(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _names(folder: Path) -> list[str]:
    """The files of a folder, but for the manifest and hidden ones."""
    files = (each for each in folder.rglob("*") if each.is_file() or each.is_symlink())
    names = (each.relative_to(folder) for each in files)
    return sorted(
        each.as_posix()
        for each in names
        if str(each) != MANIFEST and not any(part.startswith(".") for part in each.parts)
    )
