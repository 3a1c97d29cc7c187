"""How close answers are to references: exact match, ROUGE-L, BLEU."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# A word, or one character of a script that writes none apart.
_TOKEN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]")
_ORDER = 4


def tokens(text: str) -> list[str]:
    """Return the words of a text, lower case; Chinese, Japanese and Korean ideographs one by one."""
    return _TOKEN.findall(text.lower())


def accuracy(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return the share of answers that equal their reference, white space at the ends aside."""
    return sum(answer.strip() == reference.strip() for answer, reference in zip(answers, references, strict=True)) / len(answers)


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return the mean F1 of the longest common subsequence of words, between 0 and 1."""
    return sum(_rouge(tokens(answer), tokens(reference)) for answer, reference in zip(answers, references, strict=True)) / len(answers)


def bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return corpus BLEU of up to four words, between 0 and 1; orders longer than every answer are left out."""
    matched, possible = [0] * _ORDER, [0] * _ORDER
    length = wanted = 0
    for answer, reference in zip(map(tokens, answers), map(tokens, references), strict=True):
        length, wanted = length + len(answer), wanted + len(reference)
        for size in range(1, _ORDER + 1):
            own, right = _grams(answer, size), _grams(reference, size)
            matched[size - 1] += sum(min(count, right[gram]) for gram, count in own.items())
            possible[size - 1] += sum(own.values())
    orders = [size for size in range(_ORDER) if possible[size]]
    if not orders or any(not matched[size] for size in orders):
        return 0.0
    mean = sum(math.log(matched[size] / possible[size]) for size in orders) / len(orders)
    return math.exp(mean + min(0.0, 1 - wanted / length))


METRICS = {"acc": accuracy, "rouge": rouge_l, "bleu": bleu}


def measure(path: Path, names: Sequence[str]) -> tuple[dict[str, float], int]:
    """Return metrics of a result file, and how many of its rows have a reference."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [(row["response"] or "", row["labels"]) for row in rows if isinstance(row.get("labels"), str)]
    if not pairs:
        return {}, 0
    answers, references = [answer for answer, _ in pairs], [reference for _, reference in pairs]
    return {name: METRICS[name](answers, references) for name in names}, len(pairs)


def _rouge(answer: Sequence[str], reference: Sequence[str]) -> float:
    row = [0] * (len(reference) + 1)
    for word in answer:
        before = 0
        for place, other in enumerate(reference, start=1):
            kept = row[place]
            row[place] = before + 1 if word == other else max(row[place], row[place - 1])
            before = kept
    common = row[-1]
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def _grams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[place : place + size]) for place in range(len(words) - size + 1))
