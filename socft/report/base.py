"""What a report is: records in, a PDF and pictures out.

A report reads the records of its studies, the pictures in a folder of each study's name, and the
records of the claims; what was not measured may be missing.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from socft.checks import InvalidProblem
from socft.files import is_sealed, one_line, read_bytes, write_atomically
from socft.records import AGAIN, Record, read
from socft.report import findings
from socft.report.claim_records import ClaimLine, Claims, read_claims
from socft.report.findings import Question, places
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, compile_pdf, text
from socft.study.vocabulary.schema import StudySchema


@dataclasses.dataclass(frozen=True)
class Document:
    """What is typeset.

    Attributes:
        source: Typst source.
        pictures: SVG or PNG by file name, as the source names them.
    """

    source: str
    pictures: Mapping[str, bytes]


@dataclasses.dataclass(frozen=True)
class Report:
    """A report on one study, or on several.

    Attributes:
        name: its own name.
        compose: the document of the studies' records and of the claims.
        studies: the studies whose records it reads, those that were measured.
        shown: pictures that are also kept as files, for other documents to show.
        questions: what its findings answer.
    """

    name: str
    compose: Callable[[Rows, Claims], Document]
    studies: tuple[StudySchema, ...]
    shown: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()

    def measured(self, records: Path) -> bool:
        """Whether there is something to report."""
        return any(file.is_file() for file in self.sources(records))

    def sources(self, records: Path) -> list[Path]:
        """The files of records it reads."""
        return [records / f"{study.name}.jsonl" for study in self.studies]

    def rows(self, records: Path) -> Rows:
        """The records that were measured, and the pictures beside them.

        Raises:
            InvalidProblem: all records are missing, some are damaged, or a study does not write
                such.
        """
        sources = dict(zip(self.studies, self.sources(records), strict=True))
        found = {study: file for study, file in sources.items() if file.is_file()}
        measured: list[Record] = []
        for study, file in (found or sources).items():
            measured += (here := read(file))
            study.check(here)
        pictures = {
            picture.name: _picture(picture)
            for file in found.values()
            for picture in sorted(file.with_suffix("").glob("*.png"))
        }
        return Rows(tuple(measured), pictures, self.studies)

    def write(self, records: Path, out: Path) -> list[Path]:
        """Typeset ``<out>/<name>.pdf`` and the shown pictures, and put the findings into
        ``<out>/findings.json``, each atomically; returns the files.

        Raises:
            InvalidProblem: see `rows`; or records without digests, which may be damaged, do not
                make this report.
        """
        rows, claims = self.rows(records), read_claims(records)
        try:
            document = self.compose(rows, claims)
            found = [
                each.ask(rows, claims).written(places(rows, claims)) for each in self.questions
            ]
        except InvalidProblem:
            raise
        except Exception as error:
            if all(is_sealed(file) for file in self.sources(records) if file.is_file()):
                raise
            said = one_line(f"{type(error).__name__}: {error}")
            raise InvalidProblem(
                f"the records in {records} do not make the report {self.name} ({said}), and have no"
                " digests to tell damage by; measure its studies again."
            ) from error
        files = {
            out / "figures" / f"{self.name}-{name}": document.pictures[name] for name in self.shown
        }
        files[out / f"{self.name}.pdf"] = compile_pdf(document.source, document.pictures)
        for file, content in files.items():
            write_atomically(file, content)
        if not found:
            return list(files)
        findings.write(self.name, found, out / findings.FILE)
        return [out / findings.FILE, *files]


def _picture(file: Path) -> bytes:
    """The content of a picture that was measured.

    Raises:
        InvalidProblem: it is damaged.
    """
    from PIL import Image

    content = read_bytes(file, AGAIN)
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.verify()  # its checksums
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except Exception as error:  # decoders fail in any way
        raise InvalidProblem(f"{file} is damaged ({one_line(str(error))}); {AGAIN}.") from error
    return content


def provenance(rows: Rows) -> str:
    """Versions and commits of the records, as a paragraph."""
    devices = ", ".join(
        text(f"{device}, {dtype}") for device, dtype in sorted({(r.device, r.dtype) for r in rows})
    )
    return (
        f"The {len(rows.records)} records were measured {_origin(rows)}, on"
        f" {devices or NOT_MEASURED}."
    )


def claims_provenance(claims: Claims) -> str:
    """The same of the claims."""
    return (
        f"The {len(claims.checked)} claims were checked {_origin(claims.checked)}."
        if claims.checked
        else f"The claims: {NOT_MEASURED}."
    )


def _origin(measured: Iterable[Record | ClaimLine]) -> str:
    """At which commits, and with which versions."""
    found = list(measured)
    names = dict.fromkeys(name for r in found for name in r.versions)
    versions = {
        name: sorted({r.versions[name] for r in found if name in r.versions}) for name in names
    }
    listed = (
        ", ".join(f"{text(name)} {text(' and '.join(each))}" for name, each in versions.items())
        or NOT_MEASURED
    )
    commits = sorted(
        {
            (r.commit[:12] or "no version control")
            + (" with uncommitted changes" if r.dirty else "")
            for r in found
        }
    )
    code = ", ".join(f"{text(commit)}" for commit in commits) or NOT_MEASURED
    return f"at commit {code}, with {listed}"
