"""An evaluation and its verdict as files: evaluation.json, report.md, report.png.

Must not know how anything was measured. What models said is quoted so that it cannot become Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.evaluate import picture
from training.evaluate.evaluation import BASE, CANDIDATE, LIVE, METRICS, WORST, Evaluation, Line
from training.evaluate.forgetting import Forgetting
from training.evaluate.gate import Rules, Verdict
from training.evaluate.interval import CONFIDENCE

MOST_CHARACTERS = 400  # of one text in the report; evaluation.json has all of it
JSON_FILE, TEXT_FILE, PICTURE_FILE = "evaluation.json", "report.md", "report.png"


def document(evaluation: Evaluation, rules: Rules, verdict: Verdict) -> dict[str, Any]:
    """All that is known, as JSON."""
    return {"verdict": verdict.document(), "rules": rules.document(), **evaluation.document()}


def write(evaluation: Evaluation, rules: Rules, verdict: Verdict, folder: Path) -> tuple[Path, ...]:
    """The three files in `folder`, which is made. ExtraMissing."""
    folder.mkdir(parents=True, exist_ok=True)
    files = (folder / JSON_FILE, folder / TEXT_FILE, folder / PICTURE_FILE)
    whole = document(evaluation, rules, verdict)
    files[0].write_text(json.dumps(whole, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    files[1].write_text(text(evaluation, rules, verdict), encoding="utf-8")
    picture.draw(evaluation, verdict, files[2])
    return files


def text(evaluation: Evaluation, rules: Rules, verdict: Verdict) -> str:
    """report.md."""
    return "\n".join(_text(evaluation, rules, verdict)) + "\n"


def _text(evaluation: Evaluation, rules: Rules, verdict: Verdict) -> Iterator[str]:
    arms = [arm for arm in (CANDIDATE, LIVE, BASE) if arm in evaluation.models]
    yield f"# Evaluation of {evaluation.models[CANDIDATE]}"
    yield ""
    yield f"**The gate said {'yes' if verdict.passed else 'no'}.**"
    yield ""
    for finding in verdict.findings:
        yield f"- {'passed' if finding.passed else '**refused**'} `{finding.rule}`: {_plain(finding.sentence)}"
    for caution in verdict.cautions:
        yield f"- note: {_plain(caution)}"
    yield from ("", f"![Report]({PICTURE_FILE})", "", "## Scores", "")
    yield "Means over the compared rows, from 0 to 1; log-likelihood in nats a token (nearer to 0 is better)."
    yield ""
    scored = [name for name in METRICS if evaluation.mean(CANDIDATE, name) is not None]
    rows = []
    for arm in arms:
        means = [_figure(evaluation.mean(arm, name)) for name in scored]
        rows.append([f"{arm} `{evaluation.models[arm]}`", *means, _large(evaluation.perplexity(arm))])
    yield from _table(["", *(METRICS[name].title for name in scored), "Perplexity"], rows)
    yield from ("", f"## Differences, row by row, with {CONFIDENCE:.0%} intervals", "")
    yield from _table(
        ["Metric", "Candidate less", "Mean", "From", "To", "Rows", "Better", "Same", "Worse"],
        [
            [METRICS[each.metric].title, each.other, *(f"{end:+.3f}" for end in _three(each.interval))]
            + [str(count) for count in (each.interval.rows, each.better, each.same, each.worse)]
            for each in evaluation.differences
        ],
    )
    yield from _forgetting(evaluation, arms)
    yield from _corpus(evaluation, arms)
    yield from _latency(evaluation, arms)
    yield from _worst(evaluation, rules, arms)
    yield from _how(evaluation)


def _forgetting(evaluation: Evaluation, arms: Sequence[str]) -> Iterator[str]:
    yield from ("", "## Forgetting", "")
    found = evaluation.forgetting
    if not isinstance(found, Forgetting):
        yield f"Not measured: {_plain(found or 'no general set was asked')}."
        return
    yield f"Loss a token on {found.pieces} general texts and answers (`{found.source}`), which no adapter is about:"
    yield ""
    rows = []
    for arm in arms:
        rise = found.rises.get(arm)
        ends = [f"{end:+.3f}" for end in _three(rise)] if rise is not None else ["", "", ""]
        rows.append([arm, f"{found.losses[arm]:.3f}", *ends])
    yield from _table(["", "Loss", "Rise over the base", "From", "To"], rows)
    for why in found.skipped:
        yield f"\nSkipped {_plain(why)}."


def _corpus(evaluation: Evaluation, arms: Sequence[str]) -> Iterator[str]:
    yield from ("", "## Corpus scores", "")
    rows = [
        [arm, each.script, str(each.rows), f"{each.bleu:.3f}", f"{each.chrf:.3f}"]
        for arm in arms
        for each in evaluation.corpus.get(arm, ())
    ]
    yield from _table(["", "Script", "Rows", "BLEU", "chrF"], rows)
    signatures = dict.fromkeys(
        signature
        for each in evaluation.corpus.get(CANDIDATE, ())
        for signature in (each.bleu_signature, each.chrf_signature)
    )
    yield ""
    yield from (f"- sacrebleu: `{signature}`" for signature in signatures)


def _latency(evaluation: Evaluation, arms: Sequence[str]) -> Iterator[str]:
    at_once = evaluation.about.get("asked", {}).get("at_once")
    yield from ("", "## Time", "", f"Seconds of a whole answer, up to {at_once} asked at once:", "")
    rows = []
    for arm in arms:
        if (found := evaluation.latency(arm)) is not None:
            times = [f"{found.median_s:.3f}", f"{found.p95_s:.3f}"]
            rows.append([arm, *times, f"{found.tokens:.0f}", str(found.cut_off)])
    yield from _table(["", "Median", "95th percentile", "Tokens an answer", "Cut off"], rows)


def _worst(evaluation: Evaluation, rules: Rules, arms: Sequence[str]) -> Iterator[str]:
    found = evaluation.worst(rules.metric)
    yield from ("", f"## The {WORST} worst rows", "")
    if not found:
        yield "None: every answer of the candidate is the right one."
        return
    other = "the live version" if evaluation.has_live else "the base"
    yield f"First those that fell most behind {other} ({METRICS[rules.metric].title}), then the lowest scores."
    for line in found:
        yield from _row(line, arms)


def _row(line: Line, arms: Sequence[str]) -> Iterator[str]:
    scores = ", ".join(f"{METRICS[name].title} {score:.2f}" for name, score in line.scores[CANDIDATE].items())
    yield from ("", f"### Row {line.example.number}", "", f"Candidate: {scores}", "")
    yield from _quoted("asked", line.example.question)
    yield from _quoted("right answer", line.example.reference)
    for arm in arms:
        yield from _quoted(arm, line.answers[arm].text)


def _how(evaluation: Evaluation) -> Iterator[str]:
    """What somebody needs who does not believe it."""
    about = evaluation.about
    yield from ("", "## How it was done", "")
    data, compared = about.get("data", {}), len(evaluation.lines)
    yield (
        f"- Rows: {evaluation.rows} in {_plain(str(data.get('file', 'the file')))}, {compared} compared, "
        f"{evaluation.left_out} left out by sampling (at most {about.get('max_rows')}, seed {about.get('seed')}), "
        f"{len(evaluation.skipped)} skipped, {len(evaluation.failed)} not answered."
    )
    for name, value in data.items():
        if name != "file":
            yield f"- {name}: `{_plain(str(value))}`"
    yield f"- sha256 of the compared rows: `{about.get('examples_sha256')}`"
    yield f"- Asked: `{json.dumps(about.get('asked'))}`"
    yield f"- Intervals: `{json.dumps(about.get('interval'))}`"
    yield f"- Engines, as they call themselves: {', '.join(about.get('engines', ())) or 'they do not say'}"
    yield f"- Gateway and its engines: `{json.dumps(about.get('gateway'))}`"
    yield f"- Judge: {_plain(str(about.get('judge') or 'none'))}"
    yield f"- Versions: `{json.dumps(about.get('versions'))}`"
    yield "- Exact match is after Unicode's NFKC and with white space collapsed; case and punctuation count."
    for note in evaluation.notes:
        yield f"- {_plain(note)}"
    for title, rows in (("Skipped", evaluation.skipped), ("Not answered", evaluation.failed)):
        for each in rows[:WORST]:
            yield f"- {title}: row {each.number}, {_plain(each.reason)}"
        if len(rows) > WORST:
            yield f"- {title}: {len(rows) - WORST} more, in {JSON_FILE}"


def _three(interval: Any) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _large(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _quoted(title: str, said: str) -> Iterator[str]:
    """A text as an indented block: nothing in it is markup there."""
    short = said if len(said) <= MOST_CHARACTERS else said[:MOST_CHARACTERS] + " …"
    yield f"{title}:"
    yield ""
    yield from (f"    {line}" for line in (short.splitlines() or ["(nothing)"]))
    yield ""


def _plain(sentence: str) -> str:
    return " ".join(sentence.replace("|", "\\|").replace("<", "&lt;").split())
