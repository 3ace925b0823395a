"""Ways in which a file is damaged: on the disk, by another program, or by hand."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

Change: TypeAlias = Callable[[bytes, random.Random], bytes]
STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**18,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "nan",
    "\udcff",
    "../../etc",
    "owner/name",
    [],
    [[]],
    {},
    {"a": None},
)


@dataclasses.dataclass(frozen=True)
class Damage:
    """One way, on one file.

    Attributes:
        how: which of `WAYS`.
        file: relative to the folder of all files.
        seed: of the random numbers that choose the place.
    """

    how: str
    file: Path
    seed: int

    def apply(self, folder: Path) -> None:
        """Damage the file."""
        WAYS[self.how](folder / self.file, random.Random(f"{self.how}{self.file}{self.seed}"))


def damages(files: list[Path], count: int, seed: int = 0) -> Iterator[Damage]:
    """Every way in turn, on files in turn."""
    rng, ways = random.Random(seed), list(WAYS)
    for i in range(count):
        yield Damage(ways[i % len(ways)], rng.choice(files), i + 1000 * seed)


def _bytes(change: Change) -> Callable[[Path, random.Random], None]:
    return lambda file, rng: _put(file, change(file.read_bytes(), rng))


def _put(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _flip(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 8)) if damaged else 0):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _insert(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.randrange(1, 9)) + content[place:]


def _zero(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + bytes(len(content) - place)


def _lines(content: bytes, rng: random.Random) -> bytes:
    """One line less, one twice, or two in each other's place."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(3)
    if kind == 0:
        del lines[i]
    elif kind == 1:
        lines.insert(j, lines[i])
    else:
        lines[i], lines[j] = lines[j], lines[i]
    return b"".join(lines)


def _digit(content: bytes, rng: random.Random) -> bytes:
    """Another digit: a number like any other."""
    places = [i for i, each in enumerate(content[:100_000]) if chr(each).isdigit()]
    if not places:
        return content
    damaged = bytearray(content)
    damaged[rng.choice(places)] = ord(rng.choice("0123456789"))
    return bytes(damaged)


def _json(edit: Callable[[Any, random.Random], Any]) -> Callable[[Path, random.Random], None]:
    """An edit of a document, of a line of a file of lines, or of the header of tensors."""

    def change(content: bytes, rng: random.Random) -> bytes:
        size = struct.unpack("<Q", content[:8])[0] if len(content) > 8 else 0
        if content[8:9] == b"{" and size <= len(content) - 8:
            header = _dumped(edit(json.loads(content[8 : 8 + size]), rng))
            return struct.pack("<Q", len(header)) + header + content[8 + size :]
        try:
            return _dumped(edit(json.loads(content), rng))
        except ValueError:
            pass
        lines = content.splitlines(keepends=True)
        if not lines:
            return content
        i = rng.randrange(len(lines))
        try:
            lines[i] = _dumped(edit(json.loads(lines[i]), rng)) + b"\n"
        except ValueError:
            return _flip(content, rng)
        return b"".join(lines)

    return _bytes(change)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container inside with every key of it."""
    found, left = [], [value]
    while left:
        inner = left.pop()
        keys = inner.keys() if isinstance(inner, dict) else range(len(inner))
        for key in list(keys) if isinstance(inner, dict | list) else []:
            found.append((inner, key))
            if isinstance(inner[key], dict | list):
                left.append(inner[key])
    return found


def _delete(value: Any, rng: random.Random) -> Any:
    places = _places(value)
    if places:
        inner, key = rng.choice(places)
        del inner[key]
    return value


def _retype(value: Any, rng: random.Random) -> Any:
    places = _places(value)
    if not places:
        return rng.choice(STRANGE)
    inner, key = rng.choice(places)
    inner[key] = rng.choice(STRANGE)
    return value


def _swap(value: Any, rng: random.Random) -> Any:
    places = _places(value)
    if len(places) > 1:
        (a, i), (b, j) = rng.sample(places, 2)
        if not (isinstance(a[i], dict | list) or isinstance(b[j], dict | list)):
            a[i], b[j] = b[j], a[i]
    return value


def _nest(value: Any, rng: random.Random) -> Any:
    deep: Any = 1
    for _ in range(rng.choice((70, 300))):
        deep = [deep]
    places = _places(value)
    if not places:
        return deep
    inner, key = rng.choice(places)
    inner[key] = deep
    return value


def _recode(content: bytes, rng: random.Random) -> bytes:
    """In another encoding, or with a byte that no UTF-8 has."""
    text = content.decode("latin-1")
    kind = rng.randrange(4)
    if kind == 0:
        return text.encode("utf-16")
    if kind == 1:
        return b"\xef\xbb\xbf" + content
    place = rng.randrange(len(content) + 1)
    return content[:place] + (b"\xff" if kind == 2 else "ü".encode("latin-1")) + content[place:]


def _brackets(content: bytes, rng: random.Random) -> bytes:
    return b"[" * 100_000


def _folder(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _dangle(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.symlink_to(file.parent / "nowhere")


def _remove(file: Path, rng: random.Random) -> None:
    file.unlink()


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": _bytes(_truncate),
    "bits flipped": _bytes(_flip),
    "bytes inserted": _bytes(_insert),
    "zeros": _bytes(_zero),
    "lines": _bytes(_lines),
    "another digit": _bytes(_digit),
    "key deleted": _json(_delete),
    "type changed": _json(_retype),
    "values swapped": _json(_swap),
    "nested": _json(_nest),
    "brackets": _bytes(_brackets),
    "encoding": _bytes(_recode),
    "empty": _bytes(lambda *_: b""),
    "a folder": _folder,
    "dangling": _dangle,
    "removed": _remove,
}


def restore(folder: Path, kept: Path) -> None:
    """Bring every file back from a copy."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
