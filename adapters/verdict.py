"""What was found wrong or worth knowing about an adapter, each with what would make it work; and how that is raised.

One finding per reason (and config key): a file with a thousand bad tensors is one finding that counts the others.
Must not know what is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from adapters.errors import AdapterRejected


class Severity(StrEnum):
    """REFUSE: it is not registered. WARN: it is, and the operator should know."""

    REFUSE = "refuse"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class Finding:
    """`reason` is one stable word for programs; `message` says what it is, `nearest` what would make it work."""

    severity: Severity
    reason: str
    message: str
    nearest: str

    @property
    def sentence(self) -> str:
        """Both for a person."""
        return f"{self.message} {self.nearest}".rstrip()


class Rejected(AdapterRejected):
    """A refusal whose remedy stands apart. `findings`: all that was found, this refusal first, warnings last."""

    def __init__(self, message: str, nearest: str, *, reason: str, more: Sequence[Finding] = ()) -> None:
        super().__init__(f"{message} {nearest}{_more(more)}", reason=reason)
        self.findings = (Finding(Severity.REFUSE, reason, message, nearest), *more)


def findings_of(error: AdapterRejected) -> tuple[Finding, ...]:
    """All that an error says; one that is not ours has no remedy that stands apart."""
    if isinstance(error, Rejected):
        return error.findings
    return (Finding(Severity.REFUSE, error.reason, error.message, ""),)


@dataclass(slots=True)
class _Count:
    finding: Finding
    times: int = 1

    def told(self) -> Finding:
        if self.times == 1:
            return self.finding
        message = f"{self.finding.message[:-1]}, and {self.times - 1} more like it."
        return Finding(self.finding.severity, self.finding.reason, message, self.finding.nearest)


@dataclass(slots=True)
class Findings:
    """Collected while an adapter is looked at. `message`s end with a full stop."""

    _found: dict[tuple[str, str], _Count] = field(default_factory=dict)

    def refuse(self, reason: str, message: str, nearest: str, subject: str = "") -> None:
        """It cannot be served; of the same `reason` about the same `subject` only the first is kept, and counted."""
        self._add(Finding(Severity.REFUSE, reason, message, nearest), subject)

    def warn(self, reason: str, message: str, nearest: str = "") -> None:
        """It can be served."""
        self._add(Finding(Severity.WARN, reason, message, nearest), "")

    def add(self, error: AdapterRejected) -> None:
        """What another part of the check raised."""
        for each in findings_of(error):
            self._add(each, "")

    @property
    def refused(self) -> bool:
        """Whether anything speaks against serving it."""
        return any(count.finding.severity is Severity.REFUSE for count in self._found.values())

    def all(self) -> tuple[Finding, ...]:
        """Refusals as they were found, then warnings."""
        told = [count.told() for count in self._found.values()]
        return tuple(sorted(told, key=lambda each: each.severity is Severity.WARN))

    def _add(self, finding: Finding, subject: str) -> None:
        key = (finding.reason, subject)
        if key in self._found:
            self._found[key].times += 1
        else:
            self._found[key] = _Count(finding)


def rejection(findings: Sequence[Finding]) -> Rejected:
    """The error that says the first of `findings`, a refusal, and names the other refusals."""
    first, *more = findings
    return Rejected(first.message, first.nearest, reason=first.reason, more=more)


def _more(findings: Sequence[Finding]) -> str:
    reasons = [each.reason for each in findings if each.severity is Severity.REFUSE]
    if not reasons:
        return ""
    shown = ", ".join(list(dict.fromkeys(reasons))[:8])
    return f" {len(reasons)} more {'reason' if len(reasons) == 1 else 'reasons'} against it: {shown}."
