"""What a run shows and writes: a live line, ``metrics.jsonl``, TensorBoard with pictures, the
reward-KL frontier, and a warning.

A reward is a stand-in for what is wanted. When it rises while what it stands for (the checker's
accuracy) or the diversity of the pictures falls, beyond what noise explains, the run says so at
once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast, get_type_hints

import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from sd_experiments.reward.rewards import Images
from sd_experiments.training.loop import StepMetrics
from socft.checks import require
from socft.files import (
    DIGEST,
    naming,
    parse_json,
    read_text,
    seal,
    unseal,
    write_atomically,
    write_durably,
)
from socft.schema import structured

METRICS = "metrics.jsonl"
FRONTIER = "frontier.png"
SMALL = 32
STANDARD_ERRORS = 3.0
"""How far a change must exceed its standard error to be believed; a run looks dozens of times."""


@dataclasses.dataclass(frozen=True)
class ImageStatistics:
    """What the pictures of a round look like.

    Attributes:
        accuracy: mean of the checker; None without one.
        diversity: mean distance between two pictures of one prompt, root mean square over pixels;
            None with fewer than two.
    """

    accuracy: float | None
    diversity: float | None


def diversity(images: Images) -> float | None:
    """Mean root mean square distance between two of the pictures, at 32 pixels at most; None for
    fewer than two.
    """
    if len(images) < 2:
        return None
    size = min(SMALL, *images.shape[2:])
    small = torch.nn.functional.adaptive_avg_pool2d(images.float(), size).flatten(1)
    return float(torch.pdist(small).mean()) / small.shape[1] ** 0.5


class RewardHackingDetector:
    """Warns when the reward rises while accuracy or diversity falls.

    The mean over the last ``window`` rounds is compared with that over the first ``window``; a
    change counts when it exceeds 3 times its standard error over rounds. Each warning is given
    once, until its cause is gone.

    Args:
        window: rounds that are averaged.
    """

    def __init__(self, window: int):
        self.window = window
        self._rows: list[tuple[float, float | None, float | None]] = []
        self._warned: set[str] = set()

    def add(self, reward: float, images: ImageStatistics) -> list[str]:
        """Take in a round; warnings, if any."""
        self._rows.append((reward, images.accuracy, images.diversity))
        if len(self._rows) < 2 * self.window:
            return []
        rising, said = self._change(0), []
        for column, what in ((1, "the checker's accuracy"), (2, "the diversity of the pictures")):
            falling = self._change(column)
            hacked = (
                rising is not None
                and falling is not None
                and rising[2] > STANDARD_ERRORS
                and falling[2] < -STANDARD_ERRORS
            )
            if hacked and what not in self._warned and rising and falling:
                said.append(
                    f"warning: the reward rose from {rising[0]:.3g} to {rising[1]:.3g} while {what}"
                    f" fell from {falling[0]:.3g} to {falling[1]:.3g}: the reward is being"
                    " exploited; begin again with a larger problem.beta or fewer run.steps."
                )
            (self._warned.add if hacked else self._warned.discard)(what)
        return said

    def _change(self, column: int) -> tuple[float, float, float] | None:
        """Mean of the first and of the last window, and their difference in standard errors."""
        first, last = (
            [row[column] for row in part]
            for part in (self._rows[: self.window], self._rows[-self.window :])
        )
        a, b = ([v for v in values if v is not None] for values in (first, last))
        if len(a) < 2 or len(b) < 2:
            return None
        x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        error = float((x.var() / len(x) + y.var() / len(y)).sqrt())
        gap = float(y.mean() - x.mean())
        return (
            float(x.mean()),
            float(y.mean()),
            gap / error if error > 0 else math.copysign(math.inf, gap) if gap else 0.0,
        )


class MetricsFile:
    """Lines of JSON, one per gradient step, appended durably.

    Args:
        file: where.
        step: lines after this step are of a run that was stopped after its last checkpoint; they
            are dropped.
    """

    def __init__(self, file: Path, step: int):
        self.rows = (
            [row for row in read_metrics(file) if row["step"] <= step] if file.exists() else []
        )
        write_atomically(file, "".join(seal(row) + "\n" for row in self.rows).encode())
        self._file, self._stream = file, cast(BinaryIO, file.open("ab", buffering=0))

    def append(self, metrics: StepMetrics, images: ImageStatistics | None) -> dict[str, Any]:
        """Write a step; its row."""
        row = dataclasses.asdict(metrics) | ({} if images is None else dataclasses.asdict(images))
        row = {
            key: value if not isinstance(value, float) or math.isfinite(value) else None
            for key, value in row.items()
        }
        self.rows.append(row)
        with naming(self._file):
            write_durably(self._stream, (seal(row) + "\n").encode())
        return row

    def close(self) -> None:
        """No more lines."""
        self._stream.close()


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of `MetricsFile`; a last line that was cut off is left out.

    Raises:
        InvalidProblem: another line is damaged.
    """
    remedy = "remove that line"
    whole, _, _ = read_text(file, remedy).rpartition("\n")
    lines = whole.split("\n") if whole else []
    sealed = any(f'"{DIGEST}": "' in line for line in lines)
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        where = f"line {number} of {file}"
        row = unseal(line, where, remedy) if sealed else parse_json(line, where, remedy)
        structured(ROW, row, where, remedy)
        last = rows[-1]["step"] if rows else 0
        require(row["step"] > last, f"{where} is of step {row['step']}, after {last}; {remedy}.")
        rows.append(row)
    return rows


def _row() -> type:
    """What a line of the metrics holds: numbers that are not finite are null."""
    numbers, pictures = get_type_hints(StepMetrics), get_type_hints(ImageStatistics)
    whole = ("step", "round")
    known = [(name, kind if name in whole else kind | None) for name, kind in numbers.items()]
    more = [(name, kind, dataclasses.field(default=None)) for name, kind in pictures.items()]
    return dataclasses.make_dataclass("MetricsRow", [*known, *more])


ROW = _row()


class TensorBoardWriter:
    """TensorBoard's files, written at once: its own writer leaves that to a thread, which prints a
    traceback where it fails.

    Args:
        folder: where.
        step: entries after this step are of a run that was stopped after its last checkpoint;
            TensorBoard hides them.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = folder / f"{name}.{time.perf_counter_ns()}"
        events: Any = event_pb2  # made when it is imported, from a description of the format
        self._event = events.Event
        self._writer = RecordWriter(self._file.open("wb"))
        self._add(file_version="brain.Event:2")
        if step:
            begin = events.SessionLog(status=events.SessionLog.START)
            self._add(session_log=begin, step=step + 1)

    def scalars(self, row: Mapping[str, Any]) -> None:
        """Every number of a row of the metrics.

        Raises:
            OSError: the disk does not take them.
            InvalidProblem: it was closed.
        """
        from torch.utils.tensorboard.summary import scalar

        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._add(summary=scalar(name, value), step=row["step"])
        self._flush()

    def pictures(self, name: str, images: Images, step: int) -> None:
        """A grid of pictures.

        Raises:
            OSError, InvalidProblem: as for `scalars`.
        """
        from torch.utils.tensorboard.summary import image

        self._add(summary=image(name, image_grid(images), dataformats="CHW"), step=step)
        self._flush()

    def close(self) -> None:
        """No more entries."""
        with naming(self._file):
            self._writer.close()

    def _add(self, **content: Any) -> None:
        require(not self._writer.closed, f"{self._file} was closed; make another writer.")
        with naming(self._file):
            self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def _flush(self) -> None:
        with naming(self._file):
            self._writer.flush()


def image_grid(images: Images, columns: int | None = None) -> Float[Tensor, "3 tall wide"]:
    """Pictures side by side, row by row, with a white line between them."""
    images = images.detach().float().cpu().clamp(0, 1)
    columns = columns or math.ceil(len(images) ** 0.5)
    n, channels, height, width = images.shape
    rows = math.ceil(n / columns)
    canvas = torch.ones(channels, rows * (height + 1) - 1, columns * (width + 1) - 1)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def save_image_grid(images: Images, columns: int, file: Path) -> None:
    """Write a `image_grid` as PNG, atomically; missing folders are made."""
    picture = (image_grid(images, columns).permute(1, 2, 0) * 255).round().to(torch.uint8)
    content = io.BytesIO()
    Image.fromarray(picture.numpy()).save(content, "PNG")
    write_atomically(file, content.getvalue())


class Display(contextlib.AbstractContextManager["Display"]):
    """A bar with the latest numbers on a terminal; one plain line every ``every`` steps elsewhere.

    Args:
        total: gradient steps.
        done: those done before.
        console: where to show it; standard error by default.
        every: steps between lines where there is no terminal.
        silent: show nothing, as on all processes but one.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        console: Console | None = None,
        every: int = 10,
        silent: bool = False,
    ):
        self._console = console or Console(stderr=True)
        self._every, self._silent, self._total = every, silent, total
        columns = (
            BarColumn(16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
        )
        self._bar = Progress(
            *columns, console=self._console, disable=silent or not self._console.is_terminal
        )
        self._task = self._bar.add_task("", total=total, completed=done, now="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, row: Mapping[str, Any]) -> None:
        """The numbers of a gradient step."""
        line = metrics_line(row)
        self._bar.update(self._task, completed=row["step"], now=escape(line))
        shown = row["step"] % self._every == 0 or row["step"] in (1, self._total)
        if not self._console.is_terminal and shown:
            self.say(f"[{row['step']}/{self._total}] {line}")

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self._silent:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def metrics_line(row: Mapping[str, Any]) -> str:
    """The numbers of a gradient step in one line."""
    noise = row.get("gradient_noise")
    parts = [
        f"reward {row['reward']:.3f} ± {row['reward_stderr']:.3f}",
        f"KL {row['kl']:.2f}",
        f"gradient {row['gradient_norm']:.2g}" + ("" if noise is None else f" (noise {noise:.2g})"),
    ]
    parts += [
        f"{name} {row[name]:.2f}" for name in ("accuracy", "diversity") if row.get(name) is not None
    ]
    return ", ".join(parts)


def plot_frontier(rows: Sequence[Mapping[str, Any]], file: Path, window: int) -> None:
    """Draw reward against KL over a run, each point the mean of ``window`` rounds, and accuracy
    beside it if it was measured.
    """
    from matplotlib.figure import Figure

    rounds = list({row["round"]: row for row in reversed(rows)}.values())[::-1]
    averaged = [rounds[i : i + window] for i in range(0, len(rounds), window)]
    names = [
        "reward",
        *(["accuracy"] if any(row.get("accuracy") is not None for row in rounds) else []),
    ]
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        points = [(_mean(part, "kl"), _mean(part, name), part[-1]["step"]) for part in averaged]
        x, y, step = zip(*points, strict=True)
        axis.plot(x, y, color="0.8", zorder=1)
        dots = axis.scatter(x, y, c=step, zorder=2)
        axis.set(xlabel="KL from the pre-trained model", ylabel=name)
        figure.colorbar(dots, ax=axis, label="gradient steps")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(file, content.getvalue())


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else math.nan
