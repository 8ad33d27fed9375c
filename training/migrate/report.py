"""A comparison for people: Markdown, and the few lines for a terminal. Must not know how anything was compared."""

from __future__ import annotations

from training.migrate.compare import Comparison

NAMES = {"exact": "the same text", "chrf": "chrF", "rouge_l": "ROUGE-L"}
CUT = 600  # characters of one text in the report; the JSON has all


def sentences(found: Comparison) -> list[str]:
    """What it comes to."""
    exact, chrf = found.figures["exact"], found.figures["chrf"]
    lines = [
        f"{found.model} says the same as {found.old} on {exact.mean:.0%} of {found.answered} questions; "
        f"its answers are {chrf.mean:.0%} alike (chrF, 95 %: {chrf.low:.0%} to {chrf.high:.0%}).",
    ]
    if found.caution:
        lines.append(found.caution)
    if found.problems:
        lines.append(f"{len(found.problems)} of {found.rows} questions were not answered: {found.problems[0][1]}")
    if found.cut_off:
        lines.append(f"{found.cut_off} answers were cut off: allow more with --max-tokens.")
    return lines


def markdown(found: Comparison) -> str:
    """The whole report."""
    parts = [f"# {found.model} against {found.old}\n", "\n".join(sentences(found)) + "\n"]
    parts.append("| | mean | 95 % from | to |\n|---|---|---|---|")
    parts += [f"| {NAMES[name]} | {at.mean:.3f} | {at.low:.3f} | {at.high:.3f} |" for name, at in found.figures.items()]
    parts.append(f"\nQuestions: {found.rows}, answered: {found.answered}. Median answer: {found.seconds} s.")
    parts.append("Answered by: " + ", ".join(f"{_plain(name)} ({n})" for name, n in found.answered_by.items()) + "\n")
    if found.worst:
        parts.append(f"## The {len(found.worst)} that differ most\n")
    for row in found.worst:
        parts.append(f"### Line {row.row}: chrF {row.chrf:.2f}, ROUGE-L {row.rouge_l:.2f}\n")
        for title, text in (("Asked", row.question), ("Old answer", row.golden), ("New answer", row.answer)):
            parts.append(f"{title}:\n\n{_quoted(text)}\n")
    if found.problems:
        parts.append("## Not answered\n")
        parts += [f"- Line {row}: {_plain(why)}" for row, why in found.problems]
    return "\n".join(parts).rstrip() + "\n"


def _quoted(text: str) -> str:
    """Somebody else's text as a block that it cannot end."""
    shown = text if len(text) <= CUT else text[:CUT] + " …"
    return "\n".join("    " + _plain(line) for line in shown.splitlines() or [""])


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
