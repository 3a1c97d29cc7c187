"""Rewards for the length of answers, in tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from swift_core.errors import ConfigError, Problem

from swift_rlhf.rewards.math import accuracy


class Cosine:
    """Correct answers are worth more when short, wrong ones cost less when long (Yeo et al. 2025).

    `end - (end - start) (1 + cos(pi min(n / max_len, 1))) / 2`, from `start` at length 0 to `end` at `cosine_max_len`.

    Args:
        cosine_max_len: tokens at which the value no longer changes.
        cosine_min_len_value_wrong: value of a wrong answer of length 0.
        cosine_max_len_value_wrong: value of a wrong answer of full length.
        cosine_min_len_value_correct: value of a correct answer of length 0.
        cosine_max_len_value_correct: value of a correct answer of full length.
    """

    def __init__(
        self,
        *,
        cosine_max_len: int,
        cosine_min_len_value_wrong: float = -0.5,
        cosine_max_len_value_wrong: float = 0.0,
        cosine_min_len_value_correct: float = 1.0,
        cosine_max_len_value_correct: float = 0.5,
    ) -> None:
        if cosine_max_len <= 0:
            raise ConfigError([Problem("--cosine_max_len", f"{cosine_max_len} is not positive", "tokens an answer may have")])
        self.max_len = cosine_max_len
        self.wrong = (cosine_min_len_value_wrong, cosine_max_len_value_wrong)
        self.correct = (cosine_min_len_value_correct, cosine_max_len_value_correct)

    def __call__(
        self, completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]], solution: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """Return one reward for each completion; None where `accuracy` does not apply."""
        judged = accuracy(completions, solution=solution)
        return [
            None if value is None else self._value(len(ids), self.correct if value >= 1 else self.wrong)
            for value, ids in zip(judged, completion_ids, strict=True)
        ]

    def _value(self, length: int, ends: tuple[float, float]) -> float:
        start, end = ends
        return end - (end - start) * (1 + math.cos(math.pi * min(length / self.max_len, 1))) / 2


class SoftOverlong:
    """Answers that come near the length limit lose up to 1 (DAPO, Yu et al. 2025).

    0 up to `soft_max_length - soft_cache_length` tokens, then a straight line to -1 at `soft_max_length`, and -1 from there on.

    Args:
        soft_max_length: tokens at which the whole price is due.
        soft_cache_length: tokens before that in which it rises.
    """

    def __init__(self, *, soft_max_length: int, soft_cache_length: int) -> None:
        if not 0 < soft_cache_length <= soft_max_length:
            what = f"{soft_cache_length} is not between 1 and soft_max_length {soft_max_length}"
            raise ConfigError([Problem("--soft_cache_length", what, "for example a fifth of it")])
        self.limit, self.cache = soft_max_length, soft_cache_length

    def __call__(self, completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        """Return one price for each completion."""
        return [max(min((self.limit - self.cache - len(ids)) / self.cache, 0.0), -1.0) for ids in completion_ids]


class Repetition:
    """Answers that say the same again lose up to `repetition_max_penalty` (Yeo et al. 2025).

    The price is `(1 - different n-grams / n-grams) * repetition_max_penalty` over words; texts without spaces, such as Chinese,
    are taken by character.

    Args:
        repetition_n_grams: words in a row that are compared.
        repetition_max_penalty: the whole price, 0 or less.
    """

    def __init__(self, *, repetition_n_grams: int = 3, repetition_max_penalty: float = -1.0) -> None:
        if repetition_max_penalty > 0:
            raise ConfigError([Problem("--repetition_max_penalty", f"{repetition_max_penalty} is above 0", "for example -1")])
        if repetition_n_grams < 1:
            raise ConfigError([Problem("--repetition_n_grams", f"{repetition_n_grams} is below 1", "for example 3")])
        self.size, self.penalty = repetition_n_grams, repetition_max_penalty

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float | None]:
        """Return one price for each completion."""
        return [self._price(_words(completion)) for completion in completions]

    def _price(self, words: Sequence[str]) -> float:
        grams = [tuple(words[start : start + self.size]) for start in range(len(words) - self.size + 1)]
        return (1 - len(set(grams)) / len(grams)) * self.penalty if grams else 0.0


def _words(text: str) -> list[str]:
    words: list[str] = []
    for piece in text.lower().split():
        # A piece in a script without spaces is a sentence, not a word.
        words.extend(piece if any(ord(character) > 0x2E7F for character in piece) else [piece])
    return words
