"""Files: read through one door, written atomically, and lines of JSON that know what was written.

Whatever is read from disk may be damaged. What is wrong is said in one sentence with the file, the
place in it and what to do. A line that socft writes ends with a digest of its content, so that a
changed number is found as well as a missing bracket.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from socft.checks import InvalidProblem, require

DIGEST = "digest"
"""Last key of a sealed line: the first digits of the SHA-256 of the line without it."""
DIGITS = 16
DEPTH = 64
"""Brackets of JSON inside each other at most: what we read has a handful."""
ELSEWHERE = "wait for it or choose another folder with --out"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Errors of a disk that takes no more."""


def read_bytes(file: Path, remedy: str) -> bytes:
    """The content of a file.

    Args:
        remedy: what to do where it cannot be read, for the message.

    Raises:
        InvalidProblem: it does not exist, is no file, or the disk does not give it.
    """
    require(file.exists(), f"{file} does not exist; {remedy}.")
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidProblem(f"{file} cannot be read ({reason(error)}); {remedy}.") from error


def read_text(file: Path, remedy: str) -> str:
    """The content of a file of UTF-8, whatever the locale.

    Raises:
        InvalidProblem: see `read_bytes`; or it is not UTF-8.
    """
    content = read_bytes(file, remedy)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidProblem(
            f"line {line} of {file} is damaged: it is not UTF-8; {remedy}."
        ) from error


def read_json(file: Path, remedy: str, strict: bool = True) -> Any:
    """What a file of JSON says.

    Args:
        strict: refuse NaN and infinities, which are no JSON.

    Raises:
        InvalidProblem: see `read_text`; or it is not JSON.
    """
    return parse_json(read_text(file, remedy), str(file), remedy, strict)


def parse_json(content: str | bytes, where: str, remedy: str, strict: bool = True) -> Any:
    """What JSON says.

    Args:
        where: the place of the content, for the message.

    Raises:
        InvalidProblem: it is not JSON, or nested without end.
    """
    try:
        found = json.loads(content, parse_constant=_refuse if strict else None)
    except (ValueError, RecursionError) as error:
        raise InvalidProblem(f"{where} is damaged: {_no_json(error)}; {remedy}.") from error
    require(not _deep(found), f"{where} is damaged: it is nested too deeply; {remedy}.")
    return found


def seal(row: Mapping[str, Any], place: str = "") -> str:
    """A line of strict JSON with its digest.

    Args:
        place: where the line must stand, which the digest knows too.
    """
    line = json.dumps(row, allow_nan=False, ensure_ascii=False)
    return f'{line[:-1]}{", " if row else ""}"{DIGEST}": "{_digest(row, place)}"}}'


def unseal(line: str | bytes, where: str, remedy: str, place: str = "") -> dict[str, Any]:
    """The row of a line of `seal`.

    Raises:
        InvalidProblem: it is not what was written.
    """
    row = parse_json(line, where, remedy)
    known = isinstance(row, dict) and isinstance(row.get(DIGEST), str)
    require(known, f"{where} is damaged: it lacks its {DIGEST}; {remedy}.")
    expected = row.pop(DIGEST)
    require(_digest(row, place) == expected, f"{where} is not what was written there; {remedy}.")
    return row


def write_rows(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write rows as sealed lines, atomically; none can be changed, moved or lost unnoticed."""
    lines = [f"{seal(row, _place(i, len(rows)))}\n" for i, row in enumerate(rows)]
    write_atomically(file, encoded("".join(lines)))


def encoded(text: str) -> bytes:
    """UTF-8; halves of surrogate pairs, which it cannot say, are escaped as JSON does."""
    return text.encode("utf-8", "backslashreplace")


def read_rows(file: Path, remedy: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the row of every line of a file of `write_rows`, or of a file of JSON lines
    none of which is sealed.

    Raises:
        InvalidProblem: see `read_text`; or a line is damaged.
    """
    lines = read_text(file, remedy).split("\n")
    if not lines[-1]:
        del lines[-1]
    sealed = any(f'"{DIGEST}": "' in line for line in lines)
    for i, line in enumerate(lines):
        where = f"line {i + 1} of {file}"
        row = (
            unseal(line, where, remedy, _place(i, len(lines)))
            if sealed
            else parse_json(line, where, remedy)
        )
        require(
            isinstance(row, dict), f"{where} is damaged: {line[:60]!r} is no JSON object; {remedy}."
        )
        yield where, row


def is_sealed(file: Path) -> bool:
    """Whether the lines of a file have digests."""
    return f'"{DIGEST}": "'.encode() in file.read_bytes()


def write_atomically(file: Path, content: bytes) -> None:
    """Write through a temporary file in the same folder and rename it into place: the file is
    either the old one or complete.

    Raises:
        OSError: the disk does not take it; the error names the file.
    """
    with naming(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                write_durably(stream, content)
            Path(temporary).chmod(0o644)
            os.replace(temporary, file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_durably(stream: BinaryIO, content: bytes) -> None:
    """Write to an open file, buffered or not; the content is on disk when this returns."""
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]
    stream.flush()
    os.fsync(stream.fileno())


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Errors of the disk name the file that was to be written."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(file)) from error


@contextlib.contextmanager
def locked(file: Path, remedy: str = ELSEWHERE) -> Iterator[None]:
    """Hold a lock file, which another run cannot hold meanwhile; the file goes with the lock.

    Args:
        remedy: what to do where another run holds it, for the message.

    Raises:
        InvalidProblem: another run holds it.
    """
    made = not file.parent.exists()
    with open_locked(file, remedy):
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # it holds something by now
                    file.parent.rmdir()


def open_locked(file: Path, remedy: str = ELSEWHERE) -> BinaryIO:
    """A file to append to and to read, locked until it is closed.

    Raises:
        InvalidProblem: another run has locked it.
    """
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = cast(BinaryIO, file.open("a+b", buffering=0))  # closing writes nothing more
        except OSError as error:
            said = f"{file} cannot be written ({reason(error)})"
            raise InvalidProblem(f"{said}; choose another folder with --out.") from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise InvalidProblem(f"another run is writing to {file}; {remedy}.") from None
        if _is(stream.fileno(), file):  # else its last holder has just removed it
            return stream
        stream.close()


def reason(error: OSError) -> str:
    """Why the disk refuses, in words."""
    return error.strerror or str(error)


def one_line(text: str) -> str:
    """The message of an error on one line."""
    return " ".join(text.split())[:300].rstrip(".")


def _is(handle: int, file: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _no_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"{error.msg} at {place}character {error.colno}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else one_line(str(error))


def _deep(value: Any) -> bool:
    level: Iterable[Any] = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _place(index: int, count: int) -> str:
    return f"{index}/{count}"


def _digest(row: Mapping[str, Any], place: str) -> str:
    return hashlib.sha256(f"{place}\0{json.dumps(row)}".encode()).hexdigest()[:DIGITS]
