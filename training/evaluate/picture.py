"""The report as one picture: scores, differences with their intervals, losses, and rows that changed.

Axes of amounts start at zero. Only names that are ours, or checked public names, are drawn: fonts for all scripts
cannot be relied on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.evaluate.evaluation import BASE, CANDIDATE, LIVE, METRICS, Evaluation
from training.evaluate.forgetting import Forgetting
from training.evaluate.gate import Verdict
from training.extras import need

COLOURS = {BASE: "#9aa5b1", LIVE: "#5b8def", CANDIDATE: "#1f9d55"}  # apart in grey, too
BETTER, SAME, WORSE = "#1f9d55", "#d5dae0", "#c43d3d"
BOUNDED = tuple(metric for metric in METRICS.values() if metric.bounded)
WIDTH_IN, HEIGHT_IN, DPI = 12.0, 8.5, 110


def draw(evaluation: Evaluation, verdict: Verdict, path: Path) -> None:
    """Write the picture to `path` as PNG. ExtraMissing."""
    figure(evaluation, verdict).savefig(path, format="png")


def figure(evaluation: Evaluation, verdict: Verdict) -> Any:
    """A matplotlib Figure, which belongs to no window and to no global state. ExtraMissing."""
    made = need("matplotlib.figure").Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    need("matplotlib.backends.backend_agg").FigureCanvasAgg(made)
    axes = made.subplots(2, 2)
    _scores(axes[0][0], evaluation)
    _differences(axes[0][1], evaluation)
    _losses(axes[1][0], evaluation)
    _changes(axes[1][1], evaluation)
    rows = len(evaluation.lines)
    said = "the gate said yes" if verdict.passed else "the gate said no"
    made.suptitle(f"{evaluation.models[CANDIDATE]}: {said} ({rows} held-out rows)", fontsize=13)
    for row in axes:
        for axis in row:
            axis.spines[["top", "right"]].set_visible(False)
    return made


def _arms(evaluation: Evaluation) -> list[str]:
    return [arm for arm in (BASE, LIVE, CANDIDATE) if arm in evaluation.models]


def _titled(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=10.5)


def _scores(axis: Any, evaluation: Evaluation) -> None:
    arms = _arms(evaluation)
    tall = 0.8 / len(arms)
    for at, arm in enumerate(arms):
        means = [evaluation.mean(arm, metric.name) or 0.0 for metric in BOUNDED]
        places = [place + (at - (len(arms) - 1) / 2) * tall for place in range(len(BOUNDED))]
        bars = axis.barh(places, means, tall, color=COLOURS[arm], label=f"{arm}: {evaluation.models[arm]}")
        axis.bar_label(bars, [f"{mean:.2f}" for mean in means], padding=3, fontsize=8)
    axis.set_yticks(range(len(BOUNDED)), [metric.title for metric in BOUNDED])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12)
    axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axis.set_xlabel("mean score (0 to 1, more is better)")
    _titled(axis, "Scores")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)


def _differences(axis: Any, evaluation: Evaluation) -> None:
    found = [each for each in evaluation.differences if METRICS[each.metric].bounded or each.metric == "judge"]
    for place, each in enumerate(found):
        interval, colour = each.interval, COLOURS[each.other]
        axis.plot([interval.low, interval.high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        axis.plot([interval.mean], [place], "o", color=colour, markersize=7)
        axis.annotate(
            f"{interval.mean:+.2f}", (interval.mean, place), (0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    axis.axvline(0, color="black", linewidth=1)
    labels = [f"{METRICS[each.metric].title} vs. {each.other}" for each in found]
    axis.set_yticks(range(len(found)), labels, fontsize=8)
    axis.set_ylim(len(found) - 0.4, -0.7)
    axis.set_xlim(-1.05, 1.05)
    axis.set_xlabel("candidate less the other, row by row; lines: 95 % interval")
    _titled(axis, "Differences, with intervals (right of zero is better)")


def _losses(axis: Any, evaluation: Evaluation) -> None:
    arms, groups = _arms(evaluation), []
    held = {arm: -mean for arm in arms if (mean := evaluation.mean(arm, "likelihood")) is not None}
    if held:
        groups.append(("right answers of\nheld-out rows", held))
    if isinstance(evaluation.forgetting, Forgetting):
        groups.append(("general set\n(forgetting)", dict(evaluation.forgetting.losses)))
    _titled(axis, "Loss a token (less is better)")
    if not groups:
        axis.text(0.5, 0.5, "not measured: the report says why", ha="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    wide = 0.7 / len(arms)
    for at, arm in enumerate(arms):
        values = [losses.get(arm, 0.0) for _, losses in groups]
        places = [place + (at - (len(arms) - 1) / 2) * wide for place in range(len(groups))]
        bars = axis.bar(places, values, wide, color=COLOURS[arm], label=arm)
        axis.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=8)
    axis.set_xticks(range(len(groups)), [title for title, _ in groups])
    axis.set_xlim(-0.7, len(groups) - 0.3)
    axis.set_ylim(0, max(max(losses.values()) for _, losses in groups) * 1.15 + 0.01)
    axis.set_ylabel("nats a token")
    axis.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)


def _changes(axis: Any, evaluation: Evaluation) -> None:
    """How many rows are better, the same, worse: a mean can hide them."""
    found = list(evaluation.differences)
    for place, each in enumerate(found):
        start = 0
        for count, colour in ((each.better, BETTER), (each.same, SAME), (each.worse, WORSE)):
            axis.barh(place, count, 0.7, left=start, color=colour)
            if count:
                axis.text(start + count / 2, place, str(count), ha="center", va="center", fontsize=8)
            start += count
    for colour, title in ((BETTER, "better"), (SAME, "the same"), (WORSE, "worse")):
        axis.barh([0], [0], color=colour, label=title)
    labels = [f"{METRICS[each.metric].title} vs. {each.other}" for each in found]
    axis.set_yticks(range(len(found)), labels, fontsize=8)
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.set_xlim(0, max((each.interval.rows for each in found), default=1))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("rows")
    _titled(axis, "Rows that got better or worse")
    axis.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
