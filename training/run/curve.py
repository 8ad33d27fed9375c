"""The losses of a run as a picture (PNG) and as lines for a terminal. Must not know jobs or where points come from."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from training.extras import need

Line = Sequence[tuple[int, float]]  # step, loss

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # a braille letter's dots by row and column
_BRAILLE = 0x2800


def picture(file: Path, training: Line, validation: Line, title: str) -> None:
    """Draw both into `file`, whole or not at all. ExtraMissing without matplotlib."""
    need("matplotlib")
    figure = need("matplotlib.figure").Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    need("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    training, validation = _finite(training), _finite(validation)
    if training:
        axes.plot(*zip(*training, strict=True), color="#9db8d9", linewidth=1, label="training loss")
        if len(training) >= 20:
            axes.plot(*zip(*smooth(training), strict=True), color="#1f5aa6", linewidth=2, label="smoothed")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#c2571a", marker="o", markersize=3, label="validation loss")
    axes.set_title(title.replace("$", r"\$"))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if training or validation:
        axes.legend()
    fresh = file.with_name(f".{file.name}.new")
    figure.savefig(fresh, format="png")
    os.replace(fresh, file)


def sketch(training: Line, *, width: int = 60, height: int = 8) -> str:
    """The training loss in braille letters, `width` by `height`, with its range at the left."""
    points = _finite(training)
    if not points:
        return "(no loss yet)"
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    first, last = points[0][0], points[-1][0]
    cells = [[0] * width for _ in range(height)]
    previous: tuple[int, int] | None = None
    for step, loss in points:
        x = round((step - first) / max(1, last - first) * (2 * width - 1))
        y = round((high - loss) / (high - low or 1.0) * (4 * height - 1))
        for column, row in _between(previous, (x, y)):
            cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
        previous = (x, y)
    labels = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"] if height > 1 else [f"{high:.3g}"]
    margin = max(len(label) for label in labels)
    rows = [
        f"{label:>{margin}} ┤{''.join(chr(_BRAILLE + cell) for cell in row)}"
        for label, row in zip(labels, cells, strict=True)
    ]
    return "\n".join((*rows, f"{'':>{margin}}  step {first}{f'step {last}':>{max(1, width - len(f'step {first}'))}}"))


def smooth(points: Line) -> list[tuple[int, float]]:
    """A running mean whose reach grows with the number of points."""
    weight = 1 - 1 / max(4.0, math.sqrt(len(points)))
    smoothed, value = [], points[0][1]
    for step, loss in points:
        value = weight * value + (1 - weight) * loss
        smoothed.append((step, value))
    return smoothed


def _finite(points: Line) -> list[tuple[int, float]]:
    return [(step, loss) for step, loss in points if math.isfinite(loss)]


def _between(begin: tuple[int, int] | None, end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a straight line from one point to the next."""
    if begin is None:
        return [end]
    reach = max(abs(end[0] - begin[0]), abs(end[1] - begin[1]), 1)
    return [
        (
            round(begin[0] + (end[0] - begin[0]) * part / reach),
            round(begin[1] + (end[1] - begin[1]) * part / reach),
        )
        for part in range(reach + 1)
    ]
