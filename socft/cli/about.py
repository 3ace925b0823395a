"""What is installed."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import re
from importlib import metadata
from pathlib import Path

from socft.cli.commands import suggest

NAMES = {
    "clip_anytorch": "clip",
    "image_reward": "ImageReward",
    "mkdocs_material": "material",
    "pytest_xdist": "xdist",
    "python_flint": "flint",
}
"""Modules of packages with another name."""
APART = frozenset({"image-reward"})
"""Extras that need older versions than the others."""


def version() -> str:
    """Of the installed package."""
    return metadata.version("socft")


def requirements() -> dict[str, list[str]]:
    """Packages by the extra that brings them, those of every installation under the empty name."""
    found: dict[str, list[str]] = {"": []}
    for line in metadata.requires("socft") or []:
        name = re.split(r"[^\w.-]", line.strip(), maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        found.setdefault(extra[1] if extra else "", []).append(name)
    return found


def extra_with(module: str) -> str | None:
    """The extra that brings a module: the smallest, one that fits with the others first."""
    having = [
        (extra in APART, len(packages), extra)
        for extra, packages in requirements().items()
        if extra and module in map(_module, packages)
    ]
    return min(having)[-1] if having else None


def _module(package: str) -> str:
    name = package.replace("-", "_")
    return NAMES.get(name, name)


def _version(package: str) -> str | None:
    """None where it cannot be imported, whatever its metadata say."""
    if importlib.util.find_spec(_module(package)) is None:
        return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


@dataclasses.dataclass(frozen=True)
class Info:
    """Say what is installed and what is missing: versions, extras, devices, threads.

    For example:
      socft info
    """

    def run(self) -> None:
        print(f"socft {version()}, Python {platform.python_version()}, {platform.platform()}")
        print(f"installed in {Path(__file__).resolve().parents[2]}")
        lacking = [
            extra
            for extra, packages in requirements().items()
            if not _complete(extra, packages) and extra not in APART
        ]
        print(*_devices(), sep="\n")
        suggest(f"pip install 'socft[{lacking[0]}]'" if lacking else "socft toy --help")


def _complete(extra: str, packages: list[str]) -> bool:
    """Say what there is of the packages of an extra; whether that is all of them."""
    found = {each: _version(each) for each in packages}
    apart = ", in an environment of its own" if extra in APART else ""
    print(f"pip install 'socft[{extra}]'{apart}:" if extra else "needed:")
    for package, number in found.items():
        print(f"  {package} {number or 'is missing'}")
    return None not in found.values()


def _devices() -> list[str]:
    import torch

    lines = [f"processors: {os.cpu_count()}; threads of torch: {torch.get_num_threads()}"]
    lines += [
        f"cuda:{i}: {torch.cuda.get_device_name(i)},"
        f" {torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB"
        for i in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        lines.append("mps: available")
    return lines if len(lines) > 1 else [*lines, "no GPU that torch can use"]
