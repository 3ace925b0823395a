"""Pictures that a person can read: rows with a title, and under every picture what it shows."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sd_experiments.reward.rewards import Images
from socft.checks import require
from socft.files import write_atomically

LEAST = 160
"""Width of a picture in pixels, so that words fit under it; smaller ones are enlarged."""
GAP, LINE, LINES, SIZE = 8, 15, 4, 12


@dataclasses.dataclass(frozen=True, eq=False)
class PictureRow:
    """Pictures side by side.

    Attributes:
        title: above them.
        images: in [0, 1].
        captions: under each.
    """

    title: str
    images: Images
    captions: Sequence[str]


def save_captioned_grid(rows: Sequence[PictureRow], file: Path) -> None:
    """Write rows of pictures as a PNG, atomically; missing folders are made."""
    content = io.BytesIO()
    captioned_grid(rows).save(content, "PNG")
    write_atomically(file, content.getvalue())


def captioned_grid(rows: Sequence[PictureRow]) -> Image.Image:
    """Every row its title, its pictures and under each its caption, in at most four lines."""
    for row in rows:
        require(
            len(row.captions) == len(row.images) > 0,
            f"{len(row.captions)} captions for {len(row.images)} pictures; give one for each.",
        )
    font = ImageFont.load_default(SIZE)
    drawn = [_drawn(row, font) for row in rows]
    canvas = Image.new(
        "RGB", (max(each.width for each in drawn), sum(each.height for each in drawn)), "white"
    )
    top = 0
    for each in drawn:
        canvas.paste(each, (0, top))
        top += each.height
    return canvas


def _drawn(row: PictureRow, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    scale = math.ceil(LEAST / row.images.shape[3])
    height, width = (scale * size for size in row.images.shape[2:])
    whole = len(row.images) * (width + GAP) + GAP
    title = _wrapped(row.title, whole - 2 * GAP, font)
    under = [_wrapped(caption, width, font) for caption in row.captions]
    above = GAP + LINE * len(title) + GAP // 2
    bottom = above + height + GAP // 2
    canvas = Image.new("RGB", (whole, bottom + LINE * max(map(len, under)) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    _write(draw, title, GAP, GAP, font)
    for i, (image, lines) in enumerate(zip(row.images, under, strict=True)):
        left = GAP + i * (width + GAP)
        pixels = (image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0) * 255).round()
        small = Image.fromarray(pixels.byte().numpy())
        canvas.paste(small.resize((width, height), Image.Resampling.NEAREST), (left, above))
        _write(draw, lines, left, bottom, font)
    return canvas


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int, font: object) -> None:
    for i, line in enumerate(lines):
        draw.text((x, y + i * LINE), line, fill="black", font=font)  # type: ignore[arg-type]


def _wrapped(
    text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[str]:
    """Lines of whole words that are no wider, each line of the text anew; what is too long ends in
    dots.
    """
    lines: list[str] = []
    for part in text.split("\n"):
        line = ""
        for word in part.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    if len(lines) > LINES:  # the last line of the caption says the most
        lines = [*lines[: LINES - 2], f"{lines[LINES - 2]} ...", lines[-1]]
    return lines
