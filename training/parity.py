"""Whether the trainer and the engine make the same tokens of the same conversation, on a few real rows.

What differs there is what most complaints about a fine-tuned model that "got worse in vLLM" come down to. The
trainer's side is a child process in its own environment; the engine's side is asked through the gateway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from adapters.errors import ServiceError
from training.conversation import Conversation, for_trainer
from training.errors import NotServable
from training.interpreter import ChildFailed, Interpreter
from training.plan import Settled

ROWS = 3
TIMEOUT_S = 300.0  # importing LLaMA-Factory takes 10 s, and minutes where the disk is cold and the machine busy
CHILD = Path(__file__).resolve().with_name("parity_child.py")


class Render(Protocol):
    """An engine's token ids of a prompt: training/gatewayclient.py's `render`."""

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        chat_template_kwargs: Mapping[str, Any] | None,
    ) -> Awaitable[Sequence[int]]: ...


class ParityUnknown(ServiceError):
    """The trainer's side could not be asked; the message says why and where more is said."""

    code = "parity_unknown"


@dataclass(frozen=True, slots=True)
class Difference:
    """row: its place among those compared, from 1; at: the first token that differs; then the text around it."""

    row: int
    at: int
    trained: str
    served: str


@dataclass(frozen=True, slots=True)
class Parity:
    """rows: how many were compared; tokens: of all their prompts."""

    rows: int
    tokens: int
    differences: tuple[Difference, ...] = ()
    endless: int = 0  # answers that do not end as generation does
    added: int = 0  # tokens that the template wants and the base does not have

    @property
    def sentence(self) -> str:
        """For a person."""
        if self.differences:
            first = self.differences[0]
            return (
                f"{len(self.differences)} of {self.rows} rows are other tokens in training than in serving. The first "
                f"differs at token {first.at}: trained on {first.trained!r}, served as {first.served!r}."
            )
        if self.added:
            return f"The template needs {self.added} tokens that the base does not have."
        if self.endless:
            return f"{self.endless} of {self.rows} answers would be trained without their end, and never stop."
        return f"Trainer and engine make the same {self.tokens} tokens of {self.rows} rows."

    @property
    def equal(self) -> bool:
        return not (self.differences or self.endless or self.added)


async def check(
    rows: Sequence[Conversation], settled: Settled, base: Path, python: Path, render: Render, folder: Path
) -> Parity:
    """Compare at most ROWS of `rows`; NotServable where they differ. Writes into `folder`, an empty one of its own.

    python: the training environment's. ParityUnknown where the trainer's side fails; what `render` raises passes.
    """
    compared = list(rows[:ROWS])
    kwargs = settled.chat_template_kwargs or None
    served = [list(await render(each.asked, each.tools, kwargs)) for each in compared]
    asked = {
        "base": str(base),
        "settings": dict(settled.llamafactory),
        "rows": [for_trainer(each) for each in compared],
        "served": served,
    }
    found = judged(await trained(asked, python, folder))
    if not found.equal:
        raise NotServable(
            f"{found.sentence} What is trained would not be what is asked. Set `template` to the one that fits the "
            "base (docs/recipes.md lists them), or put the system message into every row with data.system.",
            param="template",
        )
    return found


def judged(answer: Mapping[str, Any]) -> Parity:
    """What the child said."""
    rows = answer["rows"]
    differences = [Difference(at, **each["difference"]) for at, each in enumerate(rows, 1) if each["difference"]]
    return Parity(
        rows=len(rows),
        tokens=sum(len(each["tokens"]) for each in rows),
        differences=tuple(differences),
        endless=sum(not each["ends"] for each in rows),
        added=max(0, answer["added"]),
    )


async def trained(asked: Mapping[str, Any], python: Path, folder: Path) -> dict[str, Any]:
    """The child's answer; ParityUnknown. The child and all that it started are ended when this is cancelled."""
    trainer = Interpreter(python, more={"OMP_NUM_THREADS": "1"})
    try:
        return await trainer.answer(CHILD, asked, folder, TIMEOUT_S)
    except ChildFailed as failed:
        raise ParityUnknown(f"LLaMA-Factory's own template code failed: {failed.message}") from None
