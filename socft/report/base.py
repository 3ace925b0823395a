"""What a report is: records in, a PDF and pictures out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from socft.records import read, write_atomically
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, compile_pdf, text


@dataclasses.dataclass(frozen=True)
class Document:
    """What is typeset.

    Attributes:
        source: Typst source.
        pictures: SVG by file name, as the source names them.
    """

    source: str
    pictures: Mapping[str, bytes]


@dataclasses.dataclass(frozen=True)
class Report:
    """A report on one study.

    Attributes:
        study: the study whose records it reads, and its own name.
        compose: the document of the records.
        shown: pictures that are also kept as files, for other documents to show.
    """

    study: str
    compose: Callable[[Rows], Document]
    shown: tuple[str, ...] = ()

    def measured(self, records: Path) -> bool:
        """Whether there is something to report."""
        return self.source(records).is_file()

    def source(self, records: Path) -> Path:
        """The file of records it reads."""
        return records / f"{self.study}.jsonl"

    def write(self, records: Path, out: Path) -> list[Path]:
        """Typeset ``<out>/<study>.pdf`` and the shown pictures, each atomically; returns the files.

        Raises:
            InvalidProblem: the records are missing or damaged.
        """
        document = self.compose(Rows(tuple(read(self.source(records)))))
        files = {out / "figures" / f"{self.study}-{name}": document.pictures[name] for name in self.shown}
        files[out / f"{self.study}.pdf"] = compile_pdf(document.source, document.pictures)
        for file, content in files.items():
            write_atomically(file, content)
        return list(files)


def provenance(rows: Rows) -> str:
    """Versions and commits of the records, as a paragraph."""
    names = dict.fromkeys(name for r in rows for name in r.versions)
    versions = {name: sorted({r.versions[name] for r in rows if name in r.versions}) for name in names}
    listed = ", ".join(f"{text(name)} {text(' and '.join(found))}" for name, found in versions.items()) or NOT_MEASURED
    commits = sorted({(r.commit[:12] or "no version control") + (" with uncommitted changes" if r.dirty else "") for r in rows})
    code = ", ".join(f"{text(commit)}" for commit in commits) or NOT_MEASURED
    devices = ", ".join(text(f"{device}, {dtype}") for device, dtype in sorted({(r.device, r.dtype) for r in rows}))
    return f"The {len(rows.records)} records were measured at commit {code}, with {listed}, on {devices or NOT_MEASURED}."
