"""How often each row of a source is taken: weights and caps in whole rows, drawn by a seed, as a stream.

A recipe and `datasets mix` both draw here, so they take the same rows for the same seed. Must not know files or forms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from training.data.row import Row

_UNIT = 2.0**-53


def amount(rows: int, weight: float = 1.0, cap: int | None = None) -> int:
    """How many rows are taken of `rows`: each `weight` times (0.5: half of them), and `cap` at most."""
    wanted = int(rows * weight + 1e-9)
    return wanted if cap is None else min(wanted, cap)


def within(amounts: Sequence[int], most: int | None) -> tuple[int, ...]:
    """The amounts made smaller in proportion, so that they are `most` in all; as they are where they fit.

    What whole rows leave over goes to those that lost the largest part of one, the first of equals.
    """
    total = sum(amounts)
    if most is None or total <= most:
        return tuple(amounts)
    made = [each * most // total for each in amounts]
    lost = sorted(range(len(made)), key=lambda place: (-(amounts[place] * most % total), place))
    for place in lost[: most - sum(made)]:
        made[place] += 1
    return tuple(made)


def taken(rows: Iterable[Row], count: int, wanted: int, seed: int) -> Iterator[Row]:
    """`wanted` rows of the `count` that `rows` has, in order: each as often as every other one, or once more.

    Which ones are taken once more hangs on the seed and on where the row stands in its file, and on nothing else.
    """
    if count <= 0:
        return
    whole, more = divmod(wanted, count)
    for left, row in zip(range(count, 0, -1), rows, strict=False):
        again = more > 0 and _drawn(seed, row.number) * left < more  # of the `left` that come, `more` are to be drawn
        more -= again
        for _ in range(whole + again):
            yield row


def _drawn(seed: int, number: int) -> float:
    """From 0 to below 1, the same for the same row."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * _UNIT
