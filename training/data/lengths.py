"""How long rows are: counts by length, percentiles, and bars that show them.

Must not know rows or what the lengths are of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

EXACT_UNTIL = 10_000  # longer ones are kept to three digits, so that memory stays bounded
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution in figures. bars: (from, to, how many), both ends included."""

    count: int
    sum: int
    min: int
    max: int
    percentiles: Mapping[int, int]
    bars: tuple[tuple[int, int, int], ...]

    def document(self) -> dict[str, object]:
        figures = {f"p{share}": value for share, value in self.percentiles.items()}
        bars = [{"from": low, "to": high, "rows": rows} for low, high, rows in self.bars]
        mean = self.sum / self.count if self.count else 0.0
        return {"sum": self.sum, "mean": round(mean, 1), "min": self.min, **figures, "max": self.max, "bars": bars}


class Lengths:
    """Counts lengths as they come, in bounded memory."""

    def __init__(self, lengths: Iterable[int] = ()) -> None:
        self._counts: Counter[int] = Counter()
        self._sum = self._max = 0
        for length in lengths:
            self.add(length)

    def add(self, length: int) -> None:
        self._sum += length
        self._max = max(self._max, length)
        if length > EXACT_UNTIL:
            step: int = 10 ** (len(str(length)) - 3)
            length = length // step * step
        self._counts[length] += 1

    def spread(self, bars: int = 12) -> Spread | None:
        """What was counted; None for nothing."""
        if not self._counts:
            return None
        ordered = sorted(self._counts.items())
        total = sum(rows for _, rows in ordered)
        least = ordered[0][0]
        figures = {share: _percentile(ordered, total, share) for share in PERCENTILES}
        return Spread(total, self._sum, least, self._max, figures, _bars(ordered, least, self._max, bars))


def _percentile(ordered: Sequence[tuple[int, int]], total: int, share: int) -> int:
    """The length that `share` in 100 rows do not go over."""
    seen = 0
    for length, rows in ordered:
        seen += rows
        if seen * 100 >= share * total:
            return length
    return ordered[-1][0]


def _bars(ordered: Sequence[tuple[int, int]], least: int, most: int, bars: int) -> tuple[tuple[int, int, int], ...]:
    """Equal steps, each of a round width."""
    width = _round_up((most - least + 1) / bars)
    low = least // width * width
    edges = list(range(low, most + width + 1, width))
    made = []
    place = 0
    for start, end in pairwise(edges):
        rows = 0
        while place < len(ordered) and ordered[place][0] < end:
            rows += ordered[place][1]
            place += 1
        made.append((start, end - 1, rows))
    while made and made[-1][2] == 0:
        made.pop()
    return tuple(made)


def _round_up(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale >= width:
                return step * scale
        scale *= 10


def drawn(spread: Spread, width: int = 40) -> str:
    """Bars for a terminal, one line each."""
    most = max((rows for _, _, rows in spread.bars), default=1) or 1
    digits = len(f"{spread.bars[-1][1]:,}") if spread.bars else 1
    lines = []
    for low, high, rows in spread.bars:
        eighths = max(rows * width * 8 // most, 1 if rows else 0)
        bar = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
        lines.append(f"{low:>{digits},}–{high:<{digits},}  {bar} {rows:,}".rstrip())
    return "\n".join(lines)


def picture(spread: Spread, *, title: str, unit: str, cutoff: int | None = None) -> bytes:
    """The distribution as a PNG; the same figures give the same bytes."""
    import io

    from training.extras import need

    need("matplotlib").use("Agg")
    figure_of, canvas_of = need("matplotlib.figure").Figure, need("matplotlib.backends.backend_agg").FigureCanvasAgg
    figure = figure_of(figsize=(8, 4.5), dpi=120, layout="constrained")
    canvas_of(figure)
    axes = figure.add_subplot()
    starts, widths = [low for low, _, _ in spread.bars], [high - low + 1 for low, high, _ in spread.bars]
    axes.bar(
        starts, [rows for _, _, rows in spread.bars], width=widths, align="edge", color="#3b7dd8", edgecolor="white"
    )
    for share, style in ((50, ":"), (95, "--")):
        value = spread.percentiles[share]
        axes.axvline(value, color="#444444", linestyle=style, linewidth=1, label=f"{share} % are at most {value:,}")
    if cutoff is not None:
        axes.axvline(cutoff, color="#c0392b", linewidth=1.5, label=f"cutoff {cutoff:,}")
    axes.set(xlabel=unit, ylabel="rows", title="".join(c for c in title if c.isascii() and c not in "$\\"))
    axes.legend(frameon=False)
    made = io.BytesIO()
    figure.savefig(made, format="png", metadata={"Software": None})
    return made.getvalue()
