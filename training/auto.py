"""What `auto` means: a number for every hyper-parameter, from the size of data, base and engine, with the reason.

Where the rules come from:
- Epochs: OpenAI's own rule for `n_epochs: auto` in its cookbook (3; more where 3 epochs are fewer than 100 rows, at
  most 25; fewer where they are more than 25,000 rows). A base below 100 M parameters gets at least 400 steps: the
  demo's learned its 24 answers by heart in 450 (measured), and not in the 4 epochs of that rule.
- Batch size: OpenAI's legacy API took 0.2 % of the rows; Predibase's guide says 16 to 32 for LoRA, and LoRA bears
  large batches worse than full fine-tuning ("LoRA Without Regret", Thinking Machines 2025). So 8 to 32.
- Learning rate: QLoRA (Dettmers 2023) used 2e-4 for 7B and 13B, 1e-4 for 33B and 65B, the guides of Predibase and
  Unsloth 2e-4. Tinker's sweeps found it to fall with the width to the power of 0.781 (Llama), which joins those: 2e-4
  at a width of 4096. The demo's base (192) learns with 3e-3 and not with 1e-2 (measured); this gives 2.2e-3. Full
  tuning: a tenth ("LoRA Without Regret"). Preferences: 5e-6, as LLaMA-Factory's examples and Zephyr's DPO recipe.
- Rank and alpha: 16 and twice the rank (Predibase, Raschka, LLaMA-Factory's default alpha); rsLoRA's alpha is 8
  whatever the rank, which is as strong as that at rank 16. LoRA+: B learns 16 times as fast as A (Hayou 2024), so A
  gets half. SimPO: beta 2, gamma half of it (its authors' README); DPO, KTO, ORPO: beta 0.1.
- Warm-up: 3 % of the steps (QLoRA), 10 % for preferences (SimPO's and Zephyr's recipes); then a cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from training.base import Base
from training.facts import DataFacts
from training.methods import STAGES, TUNINGS
from training.recipe import Recipe
from training.recipe_values import Number

SMALL_BASE = 100_000_000  # parameters
SMALL_BASE_STEPS = 400
WIDTH, WIDTH_POWER = 4096, 0.781
CUTOFF_STEP = 64
CUTOFF_EASY = 4096  # up to here no row is cut for the memory's sake


@dataclass(slots=True)
class Chooser:
    """Takes what the recipe says, else what is recommended, and writes down why."""

    recipe: Recipe
    data: DataFacts
    base: Base
    max_lora_rank: int
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def _auto(self, key: str, given: Number, value: float, why: str) -> float:
        if given != "auto":
            return float(given)
        self.note(f"{key} = {value:.4g}: {why}.")
        return value

    @property
    def prefers(self) -> bool:
        """Whether it learns from preferences."""
        return STAGES[self.recipe.method.stage].data != "sft"

    def rank(self) -> int:
        """Of the adapter as it is trained."""
        most = self.max_lora_rank // TUNINGS[self.recipe.method.tuning].grows
        rows = self.data.rows
        wanted, why = (8, "fewer than 200 rows need little room") if rows < 200 else (16, "enough for most tasks")
        if rows >= 20_000:
            wanted, why = 32, f"{rows:,} rows have more to be learned"
        if wanted > most:
            wanted, why = max(most, 1), f"the engine takes ranks up to {self.max_lora_rank}"
        return int(self._auto("method.rank", self.recipe.method.rank, wanted, why))

    def alpha(self, rank: int) -> float:
        if self.recipe.method.tuning == "rslora":
            return self._auto("method.alpha", self.recipe.method.alpha, 8, "as strong as twice the rank at rank 16")
        return self._auto("method.alpha", self.recipe.method.alpha, 2 * rank, "twice the rank")

    def cutoff(self) -> int:
        """Tokens of a row that are trained."""
        longest, context = self.data.longest, self.base.context
        whole = _up(longest + 2, CUTOFF_STEP)
        if whole <= max(CUTOFF_EASY, CUTOFF_STEP) or whole <= context <= CUTOFF_EASY:
            value, why = min(whole, context), f"the longest row has {longest:,} tokens"
        else:
            most = self.data.percentile(0.995)
            value = min(max(_up(most + 2, CUTOFF_STEP), CUTOFF_EASY), context)
            why = f"99.5 % of the rows have at most {most:,} tokens; the longest has {longest:,}"
        return int(self._auto("training.cutoff", self.recipe.training.cutoff, value, why))

    def batch_size(self) -> int:
        """Rows of one step, over all devices."""
        rows = self.data.rows
        value = min(32, max(8, 1 << round(math.log2(max(rows, 1) / 100)))) if rows > 100 else 8
        return int(self._auto("training.batch_size", self.recipe.training.batch_size, value, f"{rows:,} rows"))

    def epochs(self, steps_per_epoch: int) -> float:
        rows, given = self.data.rows, self.recipe.training.epochs
        target = 1 if self.prefers else 3
        if rows * target < 100:
            value = min(25, max(target, 100 // max(rows, 1)))
            why = f"{rows} rows are few, so they are seen more often"
        elif rows * target > 25_000:
            value, why = max(1, 25_000 // rows), f"{rows:,} rows are many"
        else:
            value, why = target, "more than that seldom helps" if target > 1 else "preferences are overlearned soon"
        if self.base.parameters < SMALL_BASE and value * steps_per_epoch < SMALL_BASE_STEPS:
            value = math.ceil(SMALL_BASE_STEPS / steps_per_epoch)
            why = f"a base of {_count(self.base.parameters)} parameters needs about {SMALL_BASE_STEPS} steps"
        return self._auto("training.epochs", given, value, why)

    def learning_rate(self) -> float:
        """With the recipe's multiplier."""
        tuning, training = self.recipe.method.tuning, self.recipe.training
        start, why = (5e-6, "preferences") if self.prefers else (2e-4, "LoRA")
        value = start * (WIDTH / self.base.hidden) ** WIDTH_POWER
        if not TUNINGS[tuning].adapter:
            value, why = value / 10, f"a tenth of what {why} would get, as all of a layer is trained"
        elif tuning == "lora+":
            value, why = value / 2, f"half of what {why} would get, as B learns faster here"
        else:
            why = f"what {why} gets"
        why = f"{why} at a width of {WIDTH}, fitted to this base's {self.base.hidden}"
        found = self._auto("training.learning_rate", training.learning_rate, float(f"{value:.1e}"), why)
        if training.learning_rate_multiplier != 1:
            found *= training.learning_rate_multiplier
            self.note(f"The learning rate is {found:.3g} with the multiplier {training.learning_rate_multiplier:g}.")
        return found

    def scheduler(self) -> str:
        if self.recipe.training.scheduler != "auto":
            return self.recipe.training.scheduler
        self.note("training.scheduler = cosine: it ends softly, and does no harm anywhere.")
        return "cosine"

    def warmup(self, steps: int) -> int:
        """Steps; the recipe may give a share instead."""
        share = 0.1 if self.prefers else 0.03
        given = self.recipe.training.warmup
        if given == "auto" or float(given) >= 1:
            return int(self._auto("training.warmup", given, math.ceil(share * steps), f"{share:.0%} of the steps"))
        return math.ceil(float(given) * steps)

    def logging_steps(self, steps: int) -> int:
        value = min(10, max(1, steps // 100))
        return int(self._auto("training.logging_steps", self.recipe.training.logging_steps, value, "a smooth curve"))

    def save_steps(self, steps: int, seconds: float) -> int:
        """At most ten minutes of work can be lost, and there are ten checkpoints at most where that allows it."""
        value = max(1, min(math.ceil(steps / 10), math.ceil(600 * steps / max(seconds, 1))))
        why = "so often, a crash costs little" if value >= steps / 10 else "about every ten minutes"
        return int(self._auto("training.save_steps", self.recipe.training.save_steps, value, why))

    def beta(self) -> float | None:
        """How close to the base preferences keep it."""
        usual = STAGES[self.recipe.method.stage].beta
        if usual is None:
            return None
        return self._auto("training.beta", self.recipe.training.beta, usual, f"usual for {self.recipe.method.stage}")

    def gamma(self, beta: float | None) -> float | None:
        """SimPO's margin."""
        if STAGES[self.recipe.method.stage].gamma is None or beta is None:
            return None
        return self._auto("training.gamma", self.recipe.training.gamma, beta / 2, "half of beta")


def _up(tokens: int, step: int) -> int:
    return math.ceil(tokens / step) * step


def _count(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
