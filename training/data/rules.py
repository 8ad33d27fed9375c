"""LLaMA-Factory's own rules for a row, applied before it: what it would drop, train wrongly, or stop at.

As of 0.9.5 (its sharegpt converter and processors). Must not know files or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.data.finding import Finding, found
from training.data.row import ASSISTANT, SYSTEM, TOOL, USER, Row, Turn

# LLaMA-Factory puts the number of the turn in place of the first, and counts the others against a row's media.
PLACEHOLDERS = ("{{idx}}", "<image>", "<video>", "<audio>")


def fault(row: Row) -> Finding | None:
    """Why the row cannot be trained on, the first reason; None where it can."""
    turns = row.turns[1:] if row.turns and row.turns[0].role == SYSTEM else row.turns
    if not turns:
        return found("empty", "There is no question and no answer.", row.number)
    for place, turn in enumerate(turns, 1 + len(row.turns) - len(turns)):
        if turn.role == SYSTEM:
            return found("system_not_first", f"Message {place} is a system message. It must be the first.", row.number)
        if not turn.content.strip() and turn.calls is None:
            return found("empty", f"Message {place} ({turn.role}) is empty.", row.number)
    order = _order(turns, 1 + len(row.turns) - len(turns))
    if order is not None:
        return found("not_alternating", order, row.number)
    if turns[-1].role != ASSISTANT:
        return found("no_answer", f"The last message is the {turns[-1].role}'s, not the assistant's.", row.number)
    if not any(turn.trained for turn in turns if turn.role == ASSISTANT):
        return found("nothing_trained", "Every answer has weight 0, so there is nothing to learn.", row.number)
    return _preference_fault(row, turns[-1])


def _preference_fault(row: Row, answer: Turn) -> Finding | None:
    if row.rejected is None:
        return None
    if row.rejected.role != ASSISTANT:
        return found("wrong_role", f"The rejected answer is the {row.rejected.role}'s.", row.number)
    if not row.rejected.content.strip() and row.rejected.calls is None:
        return found("empty", "The rejected answer is empty.", row.number)
    if (row.rejected.content, row.rejected.calls) == (answer.content, answer.calls):
        return found("same_answers", "The preferred and the rejected answer are the same.", row.number)
    return None


def _order(turns: Sequence[Turn], first: int) -> str | None:
    """What breaks the order user, assistant, user, … ; several results of tools in a row are one turn."""
    expected_answer = False
    for place, turn in enumerate(turns, first):
        if turn.role == TOOL and place > first and turns[place - first - 1].role == TOOL:
            continue
        if (turn.role == ASSISTANT) != expected_answer:
            wanted = "the assistant's" if expected_answer else "the user's"
            return f"Message {place} is the {turn.role}'s and should be {wanted}: user and assistant take turns."
        expected_answer = not expected_answer
    return None


def placeholder(row: Row) -> Finding | None:
    """Text that LLaMA-Factory would put something else in place of."""
    texts = [turn.content for turn in row.turns]
    for mark in PLACEHOLDERS:
        if any(mark in text for text in texts):
            why = "it puts a number in its place" if mark == "{{idx}}" else "models for pictures take it for one"
            if mark != "{{idx}}" or any(mark in turn.content for turn in row.turns if turn.role == USER):
                return found("placeholder", f"The text has {mark}, which the trainer may replace: {why}.", row.number)
    return None
