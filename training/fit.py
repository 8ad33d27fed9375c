"""How many rows go together on one device so that they fit its memory; where none does, what would.

Must not know settings files or where a plan is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from training import estimate
from training.errors import RecipeInvalid
from training.estimate import Shape
from training.facts import DataFacts, Facts
from training.methods import TUNINGS
from training.recipe import Recipe

PER_DEVICE_MAX = {"cpu": 8, "gpu": 16}
CUTOFFS = (32768, 16384, 8192, 4096, 2048, 1024, 512, 256)
FEW_CUT = 0.05  # of the rows: so many may lose their end so that an automatic cutoff fits


@dataclass(frozen=True, slots=True)
class _Try:
    """One recipe on one machine."""

    recipe: Recipe
    facts: Facts
    one: Shape

    def fits(self, per_device: int, cutoff: int | None = None) -> bool:
        return self.needs(per_device, cutoff) <= estimate.room(self.facts)

    def needs(self, per_device: int, cutoff: int | None = None) -> float:
        shape = replace(self.one, per_device=per_device, cutoff=cutoff or self.one.cutoff)
        return estimate.total(estimate.memory(self.recipe, self.facts, shape))

    def tuned(self, tuning: str) -> _Try:
        method = self.recipe.method.model_copy(update={"tuning": tuning})
        return replace(self, recipe=self.recipe.model_copy(update={"method": method}))


def fit(recipe: Recipe, data: DataFacts, facts: Facts, batch: int, one: Shape) -> tuple[Shape, str | None]:
    """The most rows at once that divide the batch, and a note where an automatic cutoff had to give way.

    RecipeInvalid names the nearest setting that would fit.
    """
    tried = _Try(recipe, facts, one)
    least = 2 if recipe.method.stage == "kto" else 1  # KTO compares the rows of one device's batch
    share = max(1, batch // recipe.gpus)
    most = max(least, min(share, PER_DEVICE_MAX[estimate.device(facts)]))
    for cutoff in (one.cutoff, *_shorter(recipe, data, one.cutoff)):
        for per_device in range(most, least - 1, -1):
            if (share % per_device == 0 or per_device == least) and tried.fits(per_device, cutoff):
                why = f"training.cutoff = {cutoff} after all: no more fits the memory."
                return replace(one, per_device=per_device, cutoff=cutoff), why if cutoff != one.cutoff else None
    raise _refusal(tried, least)


def _shorter(recipe: Recipe, data: DataFacts, cutoff: int) -> list[int]:
    """What an automatic cutoff may become without cutting more than a few rows."""
    if recipe.training.cutoff != "auto":
        return []
    return [each for each in CUTOFFS if each < cutoff and data.cut_at(each)[0] <= FEW_CUT * data.rows]


def _refusal(tried: _Try, least: int) -> RecipeInvalid:
    room, gpu = estimate.room(tried.facts), bool(tried.facts.hardware.gpus)
    rows = "one row" if least == 1 else f"{least} rows"
    where = "a GPU" if gpu else "this machine"
    short = (
        f"It needs about {tried.needs(least):.1f} GB of memory even with {rows} at once, and {where} has {room:.1f}."
    )
    others = ["lora"] if not TUNINGS[tried.recipe.method.tuning].adapter else []
    if gpu and tried.facts.base.quantised is None and tried.recipe.method.tuning != "qlora":
        others.append("qlora")
    for tuning in others:
        if tried.tuned(tuning).fits(least):
            return RecipeInvalid(f"{short} Use method.tuning: {tuning}.", param="method.tuning")
    cutoffs = [each for each in CUTOFFS if each < tried.one.cutoff]
    for cutoff in cutoffs:
        if tried.fits(least, cutoff):
            return RecipeInvalid(f"{short} Use training.cutoff: {cutoff}.", param="training.cutoff")
    for tuning in others:
        for cutoff in cutoffs:
            if tried.tuned(tuning).fits(least, cutoff):
                both = f"method.tuning: {tuning} and training.cutoff: {cutoff}"
                return RecipeInvalid(f"{short} Use {both}.", param="method.tuning")
    return RecipeInvalid(f"{short} Serve and train a smaller base.", param="base")
