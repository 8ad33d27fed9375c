"""Secrets and personal data in text: what kind there is, never the thing itself.

Patterns with a check behind them wherever there is one (Luhn, IBAN), because a false alarm on every order number makes
people stop reading. Must not know rows or files.
"""

from __future__ import annotations

import math
import re
from collections import Counter

# What it is → its pattern. Prefixes are those that the issuers document.
_SECRETS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("a private key", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"),
        ("an OpenAI key", r"\bsk-(?!ant-)(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{20,}"),
        ("an Anthropic key", r"\bsk-ant-[A-Za-z0-9_-]{20,}"),
        ("an AWS access key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
        ("a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
        ("a GitLab token", r"\bglpat-[A-Za-z0-9_-]{20,}"),
        ("a Slack token", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
        ("a Google API key", r"\bAIza[A-Za-z0-9_-]{35}\b"),
        ("a Hugging Face token", r"\bhf_[A-Za-z0-9]{30,}\b"),
        ("a Stripe key", r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{20,}\b"),
        ("an npm token", r"\bnpm_[A-Za-z0-9]{36}\b"),
        ("a key of this gateway", r"\blg-[A-Za-z0-9]{6,}-[A-Za-z0-9_-]{30,}"),
        ("a JSON web token", r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
        ("a bearer token", r"(?i)\bbearer\s+(?=[a-z0-9._~+/-]*\d)[a-z0-9._~+/-]{20,}=*"),
        ("a password in a URL", r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,64}:[^\s/@]{3,128}@[^\s/]"),
    )
)
_ASSIGNED = re.compile(
    r"(?i)\b(?:api[_-]?key|secret[_-]?key|client[_-]?secret|access[_-]?token|auth[_-]?token|password|passwd)\b"
    r"[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?P<value>[A-Za-z0-9_\-+/=.!@#$%^&*]{8,128})"
)
# One of these is in every secret above: `in` is much faster than all those patterns, and most texts have none.
_HINTS = (
    *(
        "-----begin",
        "sk-",
        "akia",
        "asia",
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat",
        "glpat",
        "xox",
        "aiza",
    ),
    *("hf_", "k_live", "k_test", "npm_", "lg-", "eyj", "bearer", "://"),
)
_DIGIT = re.compile(r"[0-9]")
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_NOBODY = re.compile(r"(?i)@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|example|test|invalid|localhost)$")
_CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_PHONE = re.compile(
    r"(?<![A-Za-z0-9_.+/-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"  # +49 30 1234567
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}"  # (415) 555-2671
    r"|1[3-9]\d{9})(?![A-Za-z0-9_-])"  # a Chinese mobile number
)
_CHINESE_ID = re.compile(r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\w)")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")


def secrets(text: str) -> list[str]:
    """What of it looks like a secret: `an AWS access key`, each once."""
    found: list[str] = []
    lowered = text.lower()
    if any(hint in lowered for hint in _HINTS):
        found += [name for name, pattern in _SECRETS if pattern.search(text)]
    if "=" in text or ":" in text:
        values = (match["value"] for match in _ASSIGNED.finditer(text))
        if not found and any(_is_random(value) for value in values):
            found.append("a password or key behind its name")
    return found


def personal(text: str) -> list[str]:
    """What of it looks like personal data: `an e-mail address`, each once."""
    found = []
    if "@" in text and any(not _NOBODY.search(match.group()) for match in _EMAIL.finditer(text)):
        found.append("an e-mail address")
    if _DIGIT.search(text) is None:
        return found
    if any(is_card(match.group()) for match in _CARD.finditer(text)):
        found.append("a card number")
    if any(is_iban(match.group()) for match in _IBAN.finditer(text)):
        found.append("an IBAN")
    if any(is_chinese_id(match.group()) for match in _CHINESE_ID.finditer(text)):
        found.append("a Chinese identity number")
    if _SSN.search(text):
        found.append("a US social security number")
    if any(_is_phone(match.group()) for match in _PHONE.finditer(text)):
        found.append("a phone number")
    return found


def is_card(text: str) -> bool:
    """13 to 19 digits of a card issuer that pass the Luhn check."""
    digits = [int(char) for char in text if char.isascii() and char.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6) or len(set(digits)) < 2:
        return False
    doubled = (digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Letters and digits whose remainder by 97 is 1, as ISO 13616 has it."""
    plain = text.replace(" ", "")
    if not 15 <= len(plain) <= 34 or not plain.isascii() or not plain.isalnum():
        return False
    return int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


def is_chinese_id(text: str) -> bool:
    """18 places whose last is the check digit of GB 11643."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(char) * weight for char, weight in zip(text[:17], weights, strict=True))
    return "10X98765432"[total % 11] == text[17].upper()


def _is_phone(text: str) -> bool:
    return 8 <= sum(char.isdigit() for char in text) <= 15 and not is_card(text)


def _is_random(value: str) -> bool:
    """Whether it looks drawn rather than written: `your_password_here` is not, `x7Kd9!pQ2zLm` is."""
    if not any(char.isdigit() for char in value) or not any(char.isalpha() for char in value):
        return False
    counts = Counter(value).values()
    bits = -sum(count / len(value) * math.log2(count / len(value)) for count in counts)
    return bits >= 3.0 and len(value) >= 10
