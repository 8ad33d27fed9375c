"""What LLaMA-Factory writes while it trains, read as it grows: trainer_log.jsonl, line by whole line.

After a resume it appends, so steps come twice: the newest word on a step holds. Its own estimate of what is left is
wrong then, and is not read. Must not know jobs or processes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

FILE = "trainer_log.jsonl"
POINTS_MAX = 5000  # kept in memory; beyond it every second of the older half goes
CHUNK = 4 * 1024 * 1024
_ELAPSED = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)")


@dataclass(frozen=True, slots=True)
class Point:
    """What is known of one step. elapsed_s: since this start of the trainer; None: not said."""

    step: int
    steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    valid_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    accuracy: float | None = None  # of preferences: how often the better answer was rated higher
    reward: float | None = None
    tokens: int | None = None  # seen so far, over all starts
    memory_gb: float | None = None
    elapsed_s: float | None = None


class LogReader:
    """Whole lines of a file that grows; what a crash cut short is passed over."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0
        self._rest = b""

    def new(self) -> list[dict[str, Any]]:
        """The records that came since the last call."""
        found: list[dict[str, Any]] = []
        try:
            with self._file.open("rb") as file:
                if file.seek(0, 2) < self._at:  # begun anew
                    self._at, self._rest = 0, b""
                file.seek(self._at)
                while chunk := file.read(CHUNK):
                    self._at += len(chunk)
                    *lines, self._rest = (self._rest + chunk).split(b"\n")
                    found += [record for line in lines if (record := _record(line)) is not None]
        except FileNotFoundError:
            return []
        return found


class Curve:
    """The points of a run by step."""

    def __init__(self) -> None:
        self._points: dict[int, Point] = {}

    def add(self, point: Point) -> Point:
        """Add what is newly known of a step; all that is known of it now."""
        before = self._points.get(point.step)
        if before is not None:
            said = {each.name: value for each in fields(point) if (value := getattr(point, each.name)) is not None}
            point = replace(before, **said)
        self._points[point.step] = point
        if len(self._points) > POINTS_MAX:
            self._thin()
        return point

    def points(self) -> tuple[Point, ...]:
        """In the order of their steps."""
        return tuple(self._points[step] for step in sorted(self._points))

    def losses(self) -> list[tuple[int, float]]:
        return [(point.step, point.loss) for point in self.points() if point.loss is not None]

    def valid_losses(self) -> list[tuple[int, float]]:
        return [(point.step, point.valid_loss) for point in self.points() if point.valid_loss is not None]

    def learn(self, history: Iterable[Any]) -> None:
        """What only trainer_state.json says: the norm of the gradient, of steps that are known."""
        for entry in history:
            if isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry["step"] in self._points:
                norm = entry.get("grad_norm")
                if isinstance(norm, int | float):
                    self.add(Point(entry["step"], grad_norm=float(norm)))

    def _thin(self) -> None:
        order = sorted(self._points)
        for step in order[1 : len(order) // 2 : 2]:
            if self._points[step].valid_loss is None:
                del self._points[step]


class Rate:
    """Seconds a step and tokens a second over the last readings, and from them what is left.

    before_s: seconds a step as an earlier start of the same run had them, until this one has its own.
    """

    WINDOW = 20
    SHORTEST_S = 1.0

    def __init__(self, from_step: int = 0, before_s: float | None = None) -> None:
        self._from_step = from_step
        self._readings: list[tuple[float, int, int | None]] = []
        self.step_s = before_s
        self.tokens_per_s: float | None = None

    def see(self, now: float, point: Point) -> None:
        """`point` was read at `now` (seconds of any clock)."""
        if self._readings and point.step <= self._readings[-1][1]:
            return
        if self._readings and now - self._readings[-1][0] < 0.05:  # lines read at once count as one reading
            self._readings[-1] = (self._readings[-1][0], point.step, point.tokens)
        else:
            self._readings.append((now, point.step, point.tokens))
            del self._readings[: -self.WINDOW]
        begun, first, tokens = self._readings[0]
        took = now - begun
        if point.step > first and took >= self.SHORTEST_S:
            self.step_s = took / (point.step - first)
            if tokens is not None and point.tokens is not None and point.tokens > tokens:
                self.tokens_per_s = (point.tokens - tokens) / took
        elif point.elapsed_s and point.step > self._from_step:  # the trainer's own clock, of whole seconds
            self.step_s = point.elapsed_s / (point.step - self._from_step)
            if point.tokens and self._from_step == 0:
                self.tokens_per_s = point.tokens / point.elapsed_s

    def left_s(self, point: Point) -> float | None:
        """Until the last step; None where nobody can say yet."""
        if point.steps is None:
            return None
        left = max(0, point.steps - point.step)
        return left * self.step_s if self.step_s is not None else None if left else 0.0


def point(record: Mapping[str, Any]) -> Point | None:
    """One line of the log; None for one that says nothing about training."""
    step = record.get("current_steps")
    if not isinstance(step, int) or isinstance(step, bool):
        return None
    steps, tokens = record.get("total_steps"), record.get("total_tokens")
    return Point(
        step=step,
        steps=steps if isinstance(steps, int) and steps > 0 else None,
        epoch=_number(record.get("epoch")),
        loss=_number(record.get("loss")),
        valid_loss=_number(record.get("eval_loss")),
        learning_rate=_number(record.get("lr")),
        accuracy=_number(record.get("accuracy")),
        reward=_number(record.get("reward")),
        tokens=int(tokens) if isinstance(tokens, int | float) and math.isfinite(tokens) else None,
        memory_gb=_number(record.get("vram_reserved")),
        elapsed_s=_seconds(record.get("elapsed_time")),
    )


def finite(value: float | None) -> float | None:
    """JSON has no NaN: what is none is nothing."""
    return value if value is not None and math.isfinite(value) else None


def _record(line: bytes) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        read = json.loads(line)
    except ValueError:
        # A start that was killed in the middle of a line: the next one wrote on behind it.
        begin = line.rfind(b'{"current_steps"')
        try:
            read = json.loads(line[begin:]) if begin > 0 else None
        except ValueError:
            return None
    return read if isinstance(read, dict) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _seconds(value: object) -> float | None:
    """`0:01:39`, or `1 day, 0:01:39`."""
    found = _ELAPSED.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    days, hours, minutes, seconds = (int(group or 0) for group in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
