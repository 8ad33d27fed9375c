"""How much of the right answer an answer has: ROUGE-L, BLEU and chrF, each from 0 to 1, by kept libraries.

ROUGE-L gets a tokenizer of our own, because the library's drops everything but a-z and 0-9: Chinese answers would all
score 0. BLEU is never computed over languages whose words are told apart in different ways.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluate.example import SPACED, UNSPACED, ZH, is_unspaced, script_of
from training.extras import need

BLEU_TOKENIZER = {ZH: "zh", UNSPACED: "char", SPACED: "13a"}
_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Words in lower case; every letter of a script without spaces, and every sign, is one of its own."""
    found = []
    for piece in _WORD.findall(unicodedata.normalize("NFKC", text).lower()):
        at = 0
        for here, char in enumerate(piece):
            if is_unspaced(char):
                found += [piece[at:here], char]
                at = here + 1
        found.append(piece[at:])
    return [word for word in found if word]


class _Words:
    """What rouge_score calls a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@dataclass(frozen=True, slots=True)
class Corpus:
    """One score of all answers of one script, with the signature that says exactly how it was computed."""

    script: str
    rows: int
    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


class Overlap:
    """The three metrics, each library loaded once. ExtraMissing where they are not installed."""

    def __init__(self) -> None:
        self._rouge: Any = need("rouge_score.rouge_scorer").RougeScorer(["rougeL"], tokenizer=_Words())
        self._metrics: Any = need("sacrebleu.metrics")
        self._bleu = {
            script: self._metrics.BLEU(tokenize=name, effective_order=True) for script, name in BLEU_TOKENIZER.items()
        }
        self._chrf: Any = self._metrics.CHRF()

    def rouge_l(self, answer: str, reference: str) -> float:
        """F1 of the longest common subsequence of words."""
        return float(self._rouge.score(reference, answer)["rougeL"].fmeasure)

    def bleu(self, answer: str, reference: str) -> float:
        """Of one answer, with the effective order: a short answer has no 4-grams."""
        return float(self._bleu[script_of(reference)].sentence_score(answer, [reference]).score) / 100

    def chrf(self, answer: str, reference: str) -> float:
        return float(self._chrf.sentence_score(answer, [reference]).score) / 100

    def corpus(self, pairs: Iterable[tuple[str, str]]) -> tuple[Corpus, ...]:
        """(answer, reference) of all rows: the usual corpus scores, for each script apart."""
        parts: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for answer, reference in pairs:
            parts[script_of(reference)].append((answer, reference))
        return tuple(self._corpus(script, found) for script, found in sorted(parts.items()))

    def _corpus(self, script: str, pairs: Sequence[tuple[str, str]]) -> Corpus:
        answers, references = [answer for answer, _ in pairs], [[reference for _, reference in pairs]]
        bleu, chrf = self._metrics.BLEU(tokenize=BLEU_TOKENIZER[script]), self._metrics.CHRF()
        bleu_score = bleu.corpus_score(answers, references).score / 100
        chrf_score = chrf.corpus_score(answers, references).score / 100
        signed = (str(bleu.get_signature()), str(chrf.get_signature()))
        return Corpus(script, len(pairs), float(bleu_score), float(chrf_score), *signed)
