"""Length limits, and the report of what happened to the rows."""

from typing import Any

import pytest
from swift_core.batching.encode import encode_samples
from swift_core.config.sections import TemplateSection
from swift_core.errors import DataError, TemplateError
from swift_core.protocols import Sample
from swift_core.templates.chat import build_template
from swift_core.testing.tiny import make_tiny_tokenizer


def row(*turns: tuple[str, str], origin: str = "", **flags: Any) -> Sample:
    messages: Any = [{"role": role, "content": content, **(flags if role == "assistant" else {})} for role, content in turns]
    return Sample(messages, origin=origin)


def rows(*answers: str, question: str = "Who are you?") -> list[Sample]:
    return [row(("user", question), ("assistant", answer), origin=f"d.jsonl:{number}") for number, answer in enumerate(answers, start=1)]


def encode(samples, limit=None, on_bad_row="fail", **settings):
    section = TemplateSection(**settings)
    return encode_samples(samples, build_template(make_tiny_tokenizer(), section), section, max_length=limit, on_bad_row=on_bad_row)


def test_nothing_is_cut_without_a_limit():
    kept, report = encode(rows("short", "a much longer answer " * 20))
    assert [sample.origin for sample in kept] == ["d.jsonl:1", "d.jsonl:2"]
    assert (report.rows, report.kept, report.too_long, report.truncated) == (2, 2, 0, 0)
    assert report.longest == (len(kept[1]), "d.jsonl:2")
    assert report.tokens == len(kept[0]) + len(kept[1])
    assert report.trained_tokens == sum(label != -100 for sample in kept for label in sample.labels)
    assert report.lengths == [len(sample) for sample in kept]


def test_delete_drops_and_counts():
    full, _ = encode(rows("short"))
    kept, report = encode(rows("short", "a much longer answer " * 20), limit=len(full[0]))
    assert kept == full
    assert (report.kept, report.too_long) == (1, 1)
    assert "1 sample dropped: longer than" in report.summary()


@pytest.mark.parametrize("side", ["left", "right"])
def test_cut_keeps_one_end(side):
    (full,), _ = encode(rows("a much longer answer " * 20))
    limit = 40
    (kept,), report = encode(rows("a much longer answer " * 20), limit=limit, truncation_strategy=side)
    part = slice(0, limit) if side == "right" else slice(-limit, None)
    assert (kept.input_ids, kept.labels) == (full.input_ids[part], full.labels[part])
    assert report.truncated == 1
    assert report.longest[0] == len(full)


def test_split_makes_pieces_of_plain_text():
    text = "The quick brown fox jumps over the lazy dog. " * 10
    options = {"use_chat_template": False, "loss_scale": "all"}
    (whole,), _ = encode(rows(text, question=""), **options)
    pieces, report = encode(rows(text, question=""), limit=30, truncation_strategy="split", **options)
    assert [token for piece in pieces for token in piece.input_ids] == whole.input_ids
    assert all(len(piece) <= 30 for piece in pieces)
    assert (report.split, report.pieces, report.kept) == (1, len(pieces), len(pieces))


def test_split_of_chats_is_refused():
    with pytest.raises(TemplateError, match="plain text only"):
        encode(rows("a"), limit=10, truncation_strategy="split")


def test_rows_without_loss_are_dropped_and_counted():
    silent = row(("user", "hi"), origin="d.jsonl:9")
    kept, report = encode([*rows("a"), silent])
    assert len(kept) == 1
    assert report.all_masked == 1
    assert "no token of them is trained" in report.summary()


@pytest.mark.parametrize(
    ("samples", "settings", "message", "fix"),
    [
        (
            [row(("user", "hi"), origin="d.jsonl:1")],
            {},
            "all 1 samples are masked",
            "no row has an assistant message",
        ),
        (
            [row(("user", "hi"), ("assistant", "a"), loss=False)],
            {},
            "all 1 samples are masked",
            "remove loss: false",
        ),
        (rows("a", "b"), {"limit": 8, "truncation_strategy": "right"}, "all 2 samples are masked", "beyond --max_length 8"),
        (rows("a", "bb" * 50), {"limit": 8}, "2 of 2 are longer than --max_length 8", "--max_length"),
    ],
)
def test_a_data_set_that_trains_nothing_says_why(samples, settings, message, fix):
    with pytest.raises(DataError, match=message) as caught:
        encode(samples, **settings)
    assert fix in str(caught.value)


def test_the_length_named_in_the_advice_is_enough():
    with pytest.raises(DataError) as caught:
        encode(rows("a", "b" * 90), limit=8)
    advised = int(caught.value.fix.split()[1])
    kept, _ = encode(rows("a", "b" * 90), limit=advised)
    assert len(kept) == 1


def test_rows_a_template_refuses():
    bad = row(("user", "hi"), ("tool", "x"), ("assistant", "a"), origin="d.jsonl:5")
    with pytest.raises(TemplateError, match=r"^d\.jsonl:5: .*--on_bad_row skip"):
        encode([*rows("a"), bad], template="mistral")
    kept, report = encode([*rows("a"), bad], template="mistral", on_bad_row="skip")
    assert (len(kept), report.bad) == (1, 1)
    assert "d.jsonl:5" in report.summary()
    with pytest.raises(DataError, match="all 1 cannot be rendered"):
        encode([bad], template="mistral", on_bad_row="skip")


def test_batched_encoding_is_the_same_as_one_by_one():
    samples = rows(*(f"answer {number} " * (number % 7 + 1) for number in range(600)))
    section = TemplateSection()
    template = build_template(make_tiny_tokenizer(), section)
    kept, _ = encode_samples(samples, template, section, max_length=None)
    assert kept == [template.encode(sample) for sample in samples]


def test_notes_are_counted_by_row():
    samples = rows("a", "b")
    samples[0].tools = [{"type": "function", "function": {"name": "f"}}]
    _, report = encode(samples)
    assert "1 sample: its tools are left out" in report.summary()
