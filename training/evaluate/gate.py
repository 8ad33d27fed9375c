"""May a new version answer users? From an evaluation and the recipe's rules to yes or no, every rule in a sentence.

Pure. Must not know how anything was measured, or what becomes of the version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from training.errors import RecipeInvalid
from training.evaluate.evaluation import BASE, CANDIDATE, LIVE, METRICS, Difference, Evaluation
from training.evaluate.forgetting import Forgetting
from training.evaluate.interval import CONFIDENCE, caution

PASSED, REFUSED = "passed", "refused"
ALIASES = {
    "exact_match": "exact",
    "rouge": "rouge_l",
    "rouge-l": "rouge_l",
    "rougel": "rouge_l",
    "loss": "likelihood",
    "perplexity": "likelihood",
    "log_likelihood": "likelihood",
    "logprob": "likelihood",
}
MAX_FAILED = 0.05  # share of rows that some arm did not answer


@dataclass(frozen=True, slots=True)
class Rules:
    """What a version must do. metric: a name of METRICS, by which it is judged.

    min_gain: over the base. tolerance: how far below the live version the interval may reach; None: the metric's own.
    max_forgetting: rise of the loss on the general set over the base, nats a token; None: not asked.
    keep_rows: whether the rows that must not get worse were to be asked. min_rows: fewer compared rows decide nothing.
    """

    metric: str = "rouge_l"
    min_gain: float = 0.0
    tolerance: float | None = None
    max_forgetting: float | None = None
    keep_rows: bool = False
    min_rows: int = 5

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Rules:
        """From a recipe's `gate`: what is left out, or null, stays as it is here. RecipeInvalid."""
        metric = str(given.get("metric") or "rouge_l").lower()
        metric = ALIASES.get(metric, metric)
        if metric == "auto":
            metric = "rouge_l"
        if metric not in METRICS:
            raise RecipeInvalid(
                f"There is no metric {metric[:64]}. Use one of {', '.join(METRICS)}.", param="gate.metric"
            )
        own = {each.name for each in fields(cls)} - {"metric", "keep_rows"}
        numbers = {name: given[name] for name in own if given.get(name) is not None}
        return cls(metric=metric, keep_rows=given.get("no_regression_on") is not None, **numbers)

    def document(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule and what became of it."""

    rule: str
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes where no rule says no. cautions: what the figures cannot say."""

    findings: tuple[Finding, ...]
    cautions: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(finding.sentence for finding in self.findings)

    @property
    def sentence(self) -> str:
        """All of it in one: what a job's result and an adapter's history say."""
        against = [finding.sentence for finding in self.findings if not finding.passed]
        if against:
            return "The gate said no. " + " ".join(against)
        return "The gate said yes. " + " ".join(self.sentences)

    def document(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "sentence": self.sentence,
            "rules": [{"rule": f.rule, "passed": f.passed, "sentence": f.sentence} for f in self.findings],
            "cautions": list(self.cautions),
        }


def gate(evaluation: Evaluation, rules: Rules) -> Verdict:
    """Every rule that applies, in a fixed order; without enough rows the others are told all the same."""
    findings = [_enough(evaluation, rules), _answered(evaluation)]
    against_base = evaluation.difference(rules.metric, BASE)
    findings.append(_gain(evaluation, rules, against_base))
    cautions = [] if against_base is None else [caution(against_base.interval)]
    if evaluation.has_live:
        against_live = evaluation.difference(rules.metric, LIVE)
        findings.append(_no_worse(evaluation, rules, against_live))
        cautions.append(None if against_live is None else caution(against_live.interval))
    if rules.max_forgetting is not None:
        findings.append(_forgotten(evaluation, rules.max_forgetting))
    if rules.keep_rows:
        findings.append(_kept(evaluation, rules))
    said = dict.fromkeys(each for each in cautions if each is not None)
    return Verdict(tuple(findings), tuple(said))


def _enough(evaluation: Evaluation, rules: Rules) -> Finding:
    rows = len(evaluation.lines)
    if rows >= rules.min_rows:
        return Finding("min_rows", True, f"{_rows(rows)} compared; at least {rules.min_rows} needed.")
    return Finding(
        "min_rows",
        False,
        f"Only {_rows(rows)} compared, at least {rules.min_rows} are needed: hold out more rows for validation.",
    )


def _answered(evaluation: Evaluation) -> Finding:
    failed, asked = len(evaluation.failed), len(evaluation.failed) + len(evaluation.lines)
    if failed <= MAX_FAILED * asked:
        said = "All asked rows were answered." if not failed else f"{failed} of {asked} rows were not answered."
        return Finding("answered", True, said)
    return Finding(
        "answered",
        False,
        f"{failed} of {asked} rows were not answered, so the comparison is of the others alone: "
        f"{evaluation.failed[0].reason}",
    )


def _gain(evaluation: Evaluation, rules: Rules, found: Difference | None) -> Finding:
    """The mean gain is what was wanted and, where a gain was wanted, chance does not explain it."""
    metric = METRICS[rules.metric]
    if found is None:
        return Finding("min_gain", False, _unknown(metric.title, "the base"))
    enough = found.interval.mean >= rules.min_gain
    certain = rules.min_gain <= 0 or found.interval.low > 0
    sentence = (
        f"{metric.title}: {_against(evaluation, rules.metric, BASE, found)}; "
        f"a gain of at least {_number(rules.min_gain)} was asked for."
    )
    if enough and not certain:
        sentence += " The gain may be chance: its interval reaches zero."
    return Finding("min_gain", enough and certain, sentence)


def _no_worse(evaluation: Evaluation, rules: Rules, found: Difference | None) -> Finding:
    """The interval's lower end, not its mean: that it is not worse must be shown, not merely not refuted."""
    metric = METRICS[rules.metric]
    if found is None:
        return Finding("no_worse_than_live", False, _unknown(metric.title, "the live version"))
    tolerance = rules.tolerance if rules.tolerance is not None else metric.tolerance
    passed = found.interval.low >= -tolerance
    sentence = (
        f"{metric.title}: {_against(evaluation, rules.metric, LIVE, found)}; "
        f"the interval may reach down to {_number(-tolerance)}."
    )
    if not passed and found.interval.mean >= -tolerance:
        sentence += " It may be as good, but these rows do not show it: more rows would."
    return Finding("no_worse_than_live", passed, sentence)


def _forgotten(evaluation: Evaluation, most: float) -> Finding:
    found = evaluation.forgetting
    if not isinstance(found, Forgetting):
        why = found or "no general set was asked"
        return Finding("max_forgetting", False, f"What was forgotten could not be measured: {why}.")
    rise = found.rises[CANDIDATE]
    passed = rise.mean <= most
    return Finding(
        "max_forgetting",
        passed,
        f"Forgetting: on {found.pieces} general texts the loss a token is {found.losses[CANDIDATE]:.3f} against the "
        f"base's {found.losses[BASE]:.3f}, {_signed(rise.mean)} ({_ends(rise.low, rise.high)}); "
        f"a rise of at most {_number(most)} was allowed.",
    )


def _kept(evaluation: Evaluation, rules: Rules) -> Finding:
    """Row by row: better rows elsewhere make no amends for one that must not get worse."""
    lines, other = evaluation.guarded, LIVE if evaluation.has_live else BASE
    metric = METRICS[rules.metric if rules.metric != "judge" else "rouge_l"]
    who = "the live version" if other == LIVE else "the base"
    if lines is None:
        return Finding("no_regression_on", False, "The rows that must not get worse were not asked.")
    if evaluation.guarded_failed:
        first = evaluation.guarded_failed[0]
        return Finding(
            "no_regression_on",
            False,
            f"{len(evaluation.guarded_failed)} of the rows that must not get worse could not be compared; "
            f"row {first.number}: {first.reason}.",
        )
    worse = [
        line.example.number
        for line in lines
        if (difference := line.difference(metric.name, other)) is None or difference < -metric.noise
    ]
    if not worse:
        return Finding(
            "no_regression_on",
            True,
            f"None of {_rows(len(lines))} that must not get worse than with {who} did ({metric.title}).",
        )
    named = ", ".join(map(str, worse[:10])) + (", …" if len(worse) > 10 else "")
    return Finding(
        "no_regression_on",
        False,
        f"{len(worse)} of {_rows(len(lines))} that must not get worse than with {who} did ({metric.title}): "
        f"row {named}.",
    )


def _against(evaluation: Evaluation, metric: str, other: str, found: Difference) -> str:
    interval, who = found.interval, "the base" if other == BASE else "the live version"
    means = ""
    mine, theirs = evaluation.mean(CANDIDATE, metric), evaluation.mean(other, metric)
    if mine is not None and theirs is not None:
        means = f"{mine:.3f} against {who}'s {theirs:.3f}, "
    else:
        means = f"against {who} "
    return f"{means}{_signed(interval.mean)} on {_rows(interval.rows)} ({_ends(interval.low, interval.high)})"


def _ends(low: float, high: float) -> str:
    return f"{CONFIDENCE:.0%} interval {_signed(low)} to {_signed(high)}"


def _unknown(title: str, who: str) -> str:
    return f"{title}: there is no row where it is known for both the candidate and {who}, so nothing can be said."


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _number(value: float) -> str:
    return f"{value:.3f}"
