"""How good a row looks, from 0 to 1, by signs that can be named: what each one is, and how much it takes off.

Signs, not a judgement: nothing here knows whether an answer is right. Must not know files or what becomes of a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from training.data.row import ASSISTANT, USER, Row

# Sign → what it takes off the score, and what it means. docs/datasets.md has the same table.
SIGNS: dict[str, tuple[float, str]] = {
    "garbled": (0.5, "characters that were decoded wrongly, or that no text has"),
    "refusal": (0.5, "the answer speaks of itself as an AI, or declines"),
    "filler": (0.5, "text that was to be replaced: lorem ipsum, [insert name], TODO"),
    "repetition": (0.5, "the answer says the same over and over"),
    "echo": (0.5, "the answer is the question again, and hardly more"),
    "no_words": (0.5, "the question or the answer has no letter and no digit, or says only n/a"),
    "cut_short": (0.3, "the answer ends in the middle of a sentence, or of a block of code"),
    "too_brief": (0.3, "much was asked for, and the answer is a few characters"),
    "symbols": (0.3, "more than half of the answer is neither letters nor digits"),
    "markup": (0.2, "HTML in what is no code: tags, or &nbsp;"),
}
FEW_UNITS = 24  # words, or characters of Chinese, Japanese and Korean: what is shorter cannot repeat itself
RUN = 5  # units that are compared as one
REPEATED = 0.5  # share of runs that were there before
MOST_SYMBOLS = 0.5
MOST_CHARACTERS = 8_000  # of a text: the cost of a row is bounded
BRIEF = {True: 8, False: 20}  # characters, of Chinese, Japanese and Korean and of others

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_UNIT = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_]+")
_WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")
# UTF-8 that was read as CP1252 or GBK, the character for "unknown", and control characters.
_GARBLED = re.compile(
    r"\ufffd|Ã[\u0080-\u00bf\u0152-\u0192\u02c6-\u02dc\u2013-\u2122]|â€|Â[\u00a1-\u00bf]|ï»¿|锟斤拷|烫烫烫|屯屯屯"
    r"|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]"
)
_AI = r"(?:ai|artificial intelligence|large language|language)"
_CANNOT = r"(?:can'?t|can’t|cannot|am unable|am not able|won'?t)"
_REFUSAL = re.compile(
    rf"\bas an? {_AI}\b[^.\n]{{0,40}}?\b(?:model|assistant|i\b)"
    rf"|\b(?:i am|i'm|i’m) (?:just |only )?an? {_AI} (?:language )?model"
    rf"|\A\W*(?:i'?m|i am|i’m)? ?(?:really |very )?(?:sorry|afraid)[,.]?(?: but)? (?:that )?i {_CANNOT}"
    rf"|\A\W*i {_CANNOT}(?: to)? (?:assist|help|comply|fulfill|provide|do that|answer)"
    r"|\bmy (?:knowledge|training) (?:cut-?off|data (?:only )?(?:goes|ends))"
    r"|作为(?:一个|一名|一种)?(?:人工智能|ai|语言模型|大型语言模型|大语言模型)"
    r"|我(?:是|只是)一个(?:人工智能|ai|语言模型)"
    r"|\A\W*(?:很抱歉|抱歉|对不起|很遗憾)[,，]?我(?:无法|不能)"
    r"|\bals (?:ki|künstliche intelligenz|sprachmodell|ki-)\b"
    r"|\ben tant qu[e'’] ?(?:ia|intelligence artificielle|modèle de langage)\b"
    r"|\bcomo (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje|modelo de linguagem)\b",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"lorem ipsum|\[(?:insert|fill in) \w[^\]\n]{0,60}\]|<(?:insert|placeholder)[ _-][^>\n]{0,60}>"
    r"|\[your (?:name|company|address|email|e-mail|phone|product|title|city)\b[^\]\n]{0,40}\]"
    r"|(?-i:\b(?:TODO|TBD|FIXME):|\A\W*(?:TODO|TBD|FIXME|XXX+)\W*\Z)",  # `todo` is a word of Spanish
    re.IGNORECASE,
)
_NOTHING = re.compile(r"\W*(?:n/?a|none|null|nil|nan|undefined|idk|tbd|无|暂无|没有)?\W*", re.IGNORECASE)
_MARKUP = re.compile(
    r"&(?:nbsp|amp|lt|gt|quot|#\d{2,5}|#x[0-9a-f]{2,5});|</?(?:p|br|div|span|li|ul|ol|b|i|strong|em|a|td|tr|table|h[1-6])(?:\s[^<>]{0,200})?/?>",
    re.IGNORECASE,
)
_ENDS = re.compile(r"[.!?…。！？](?=[\s\"'”’)」』]|\Z|[^\x00-\x7f])")
_ENDED = ".\"!?…。！？”’'」』)）]】}>*_`~:：;；|$%°=\\"
_MUCH = re.compile(
    r"\b(?:explain|describe|write|elaborate|summari[sz]e|compare|discuss|outline|in detail|step[- ]by[- ]step|essay)\b"
    r"|解释|描述|详细|说明|写一|总结|比较|论述|步骤|介绍",
    re.IGNORECASE,
)
_SYMBOL = re.compile(r"(?=[\x00-\u02ff\u2000-\U0010ffff])[^\w\s]|_")  # marks of other scripts belong to letters
_SPACE = re.compile(r"\s")
_RUN_OF_ONE = re.compile(r"([^\s\d=\-_*#.~+|])\1{15,}")
_LISTED = re.compile(r"\s*(?:[-*+•#>|]|\d{1,3}[.)、])")


@dataclass(frozen=True, slots=True)
class Sign:
    """One sign that a row is bad. off: what it takes off the score."""

    name: str
    off: float
    where: str  # in the question, or in which answer

    @property
    def message(self) -> str:
        return f"{self.name} ({self.where}): {SIGNS[self.name][1]}"


def signs(row: Row) -> tuple[Sign, ...]:
    """Each sign of the row once, in the order of SIGNS. Only what is learned is looked at, and what was asked for it.

    An answer that is bad on purpose (rejected, or labelled so) is none.
    """
    found: dict[str, str] = {}
    asked = ""
    for place, turn in enumerate(row.turns, 1):
        if turn.role == USER:
            asked = turn.content
            for name in _of_question(turn.content):
                found.setdefault(name, f"message {place}")
        elif turn.role == ASSISTANT and turn.trained and turn.calls is None and row.label is not False:
            for name in of_answer(asked, turn.content):
                found.setdefault(name, f"message {place}")
    return tuple(Sign(name, off, found[name]) for name, (off, _) in SIGNS.items() if name in found)


def score(found: tuple[Sign, ...]) -> float:
    """1 without any sign, less what each takes off, and never below 0."""
    return round(max(0.0, 1.0 - sum(sign.off for sign in found)), 2)


def of_answer(question: str, answer: str) -> Iterator[str]:
    """The signs of one answer."""
    text = answer[:MOST_CHARACTERS]
    prose = _CODE.sub(" ", text)
    if _GARBLED.search(text):
        yield "garbled"
    if _REFUSAL.search(prose):
        yield "refusal"
    if _FILLER.search(prose):
        yield "filler"
    if _repeats(prose):
        yield "repetition"
    if _echoes(question, answer):
        yield "echo"
    if _NOTHING.fullmatch(text):
        yield "no_words"
    elif _MUCH.search(question) and _is_brief(answer):
        yield "too_brief"
    data = _is_data(answer)
    if len(answer) <= MOST_CHARACTERS and not data and _cut_short(answer, prose):
        yield "cut_short"
    if not data and _mostly_symbols(prose):
        yield "symbols"
    if not data and _MARKUP.search(prose):
        yield "markup"


def _of_question(question: str) -> Iterator[str]:
    text = question[:MOST_CHARACTERS]
    if _GARBLED.search(text):
        yield "garbled"
    if _FILLER.search(_CODE.sub(" ", text)) and len(text) < 400:
        yield "filler"  # a longer one may be about a form to be filled in
    if _NOTHING.fullmatch(text):
        yield "no_words"


def _repeats(prose: str) -> bool:
    """Whether most runs of words were there before, or one character is all of a long stretch."""
    if _RUN_OF_ONE.search(prose):
        return True
    units = _UNIT.findall(prose.casefold())
    if len(units) < FEW_UNITS:
        return False
    count = len(units) - RUN + 1
    runs = set(zip(*(units[place : place + count] for place in range(RUN)), strict=True))
    return 1 - len(runs) / count > REPEATED


def _echoes(question: str, answer: str) -> bool:
    if len(answer) > 3 * len(question) + FEW_UNITS:
        return False
    asked, said = (" ".join(_UNIT.findall(text[:MOST_CHARACTERS].casefold())) for text in (question, answer))
    if len(asked) < 12 or not said.startswith(asked):
        return False
    return len(said) - len(asked) < len(asked) / 2


def _is_brief(answer: str) -> bool:
    plain = answer.strip()
    return len(plain) < BRIEF[bool(_WIDE.search(plain))]


def _is_data(answer: str) -> bool:
    """JSON, or XML: it has its own signs, and its own end."""
    plain = answer.strip()
    if plain.startswith("<") and plain.endswith(">"):
        return True
    if not plain.startswith(("{", "[")):
        return False
    try:
        json.loads(plain)
    except (ValueError, RecursionError):
        return False
    return True


def _cut_short(answer: str, prose: str) -> bool:
    """Whether it ends without an end, where it has ended sentences before."""
    if answer.count("```") % 2:
        return True
    plain = answer.rstrip()
    last = plain.rpartition("\n")[2]
    if len(plain) < 80 or plain.endswith(tuple(_ENDED)) or _LISTED.match(last) or last.rstrip().endswith("```"):
        return False
    if not (plain[-1].isalnum() or plain[-1] in ",，、;([{（「-"):
        return False  # an emoji, a signature's dash, a sign of some other script
    if re.search(r"https?://\S+\Z", plain) or re.search(r"\n\s*\n[^\n]{0,60}\Z", plain):
        return False  # an address; a signature
    return len(_ENDS.findall(prose)) >= 2


def _mostly_symbols(prose: str) -> bool:
    if len(prose) < FEW_UNITS:
        return False
    symbols = len(_SYMBOL.findall(prose))
    return symbols > MOST_SYMBOLS * (len(prose) - len(_SPACE.findall(prose)))
