"""Folders that know the hashes of their files, so that a damaged or mixed-up model is named and not
measured.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from socft.checks import require
from socft.files import write_atomically

MANIFEST = "sha256.json"


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Fill a new folder, add the hashes of its files, and put it in the place of the old one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        fill(new)
        for file in new.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        write_atomically(new / MANIFEST, (json.dumps(_hashes(new), indent=2) + "\n").encode())
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        new.rename(folder)


def verify(folder: Path, remedy: str) -> None:
    """Compare every file of a folder with its hash.

    Args:
        folder: a folder written by `replace_folder`.
        remedy: what to do about a bad one, for the message.

    Raises:
        InvalidProblem: the folder or one of its files is missing, or differs from what was saved.
    """
    manifest = folder / MANIFEST
    require(
        manifest.is_file(),
        f"{manifest} does not exist, so {folder} holds no saved model; {remedy}.",
    )
    expected, found = json.loads(manifest.read_text()), _hashes(folder)
    for name, digest in expected.items():
        require(name in found, f"{folder / name} is missing; {remedy}.")
        require(
            found[name] == digest,
            f"{folder / name} is not the file that was saved (sha256 {found[name][:12]}...);"
            f" {remedy}.",
        )


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }
