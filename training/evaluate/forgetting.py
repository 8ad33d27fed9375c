"""What a version has forgotten: how much more a text of the general set surprises it than the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluate.asking import Manner, each
from training.evaluate.example import Example
from training.evaluate.general import General
from training.evaluate.interval import Interval, bootstrap
from training.evaluate.likelihood import CannotTell, answer_tokens, likelihood, text_tokens
from training.gatewayclient import Gateway


@dataclass(frozen=True, slots=True)
class Forgetting:
    """losses: model → mean loss a token over the pieces that all models were asked; rise: of each but the base."""

    source: str
    digest: str
    pieces: int
    losses: Mapping[str, float]
    rises: Mapping[str, Interval]
    skipped: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        return {
            "set": self.source,
            "sha256": self.digest,
            "pieces": self.pieces,
            "loss_per_token": dict(self.losses),
            "rise_over_base": {arm: rise.document() for arm, rise in self.rises.items()},
            "skipped": list(self.skipped),
        }


async def forgetting(
    gateway: Gateway,
    arms: Mapping[str, str],
    general: General,
    manner: Manner,
    *,
    seed: int,
    done: Callable[[int], None],
) -> Forgetting | str:
    """arms: candidate, live, base → model name. A string says why nothing could be measured. GatewayAway."""

    async def one(at: int) -> dict[str, float] | str:
        piece = general.pieces[at]
        try:
            base = arms["base"]
            if isinstance(piece, Example):
                tokens = await answer_tokens(gateway, base, piece, manner)
            else:
                tokens = await text_tokens(gateway, base, piece)
            return {arm: (await likelihood(gateway, model, tokens)).loss for arm, model in arms.items()}
        except CannotTell as why:
            return f"piece {at + 1}: {why}"

    found = await each(range(len(general.pieces)), one, manner.at_once, done)
    measured = [each_ for each_ in found if not isinstance(each_, str)]
    skipped = tuple(each_ for each_ in found if isinstance(each_, str))
    if not measured:
        return skipped[0].partition(": ")[2] if skipped else "the general set is empty"
    losses = {arm: _mean([loss[arm] for loss in measured]) for arm in arms}
    rises = {
        arm: bootstrap([loss[arm] - loss["base"] for loss in measured], seed=seed) for arm in arms if arm != "base"
    }
    return Forgetting(general.source, general.digest, len(measured), losses, rises, skipped)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
