"""Texts, pairs and groups as a model reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from swift_core.config.tasks import TaskSection
from swift_core.errors import DataError
from swift_core.protocols import Sample
from swift_core.tasks.encoding import TextEncoder, TextReport, TooLong, draw, encode_pairs, encode_rows, encode_texts
from swift_core.tasks.texts import collate_groups
from swift_core.templates.chat import ChatTemplate
from swift_core.testing.tiny import make_tiny_tokenizer
from transformers import BertTokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *["a", "b", "c", "d", "e", "f", "g", "h"]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("bert") / "vocab.txt"
    Path(file).write_text("\n".join(WORDS), encoding="utf-8")
    return BertTokenizer(vocab=str(file))


def said(content: str, role: str = "user") -> Sample:
    return Sample([{"role": role, "content": content}], origin="rows.jsonl:1")  # type: ignore[typeddict-item]


def plain(tokenizer: Any, limit: int | None = None, truncation: Any = "delete") -> TextEncoder:
    return TextEncoder(tokenizer, None, max_length=limit, truncation=truncation, report=TextReport(max_length=limit))


def words(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize(("side", "expected"), [("right", "[CLS] a b [SEP]"), ("left", "[CLS] d e [SEP]")])
def test_a_cut_text_keeps_its_special_tokens(bert: Any, side: Any, expected: str) -> None:
    encoder = plain(bert, 4, side)
    assert words(bert, encoder.text(said("a b c d e")).input_ids) == expected
    assert encoder.report.notes.total() == 1
    assert bert.truncation_side == "right"


def test_a_long_text_is_dropped_by_default(bert: Any) -> None:
    with pytest.raises(TooLong):
        plain(bert, 4).text(said("a b c d e"))


def test_a_pair_of_an_encoder_has_two_parts(bert: Any) -> None:
    pair = plain(bert).pair(said("a b"), said("c", "assistant"), instruction="", judge="")
    assert words(bert, pair.input_ids) == "[CLS] a b [SEP] c [SEP]"
    assert pair.model_inputs is not None
    assert pair.model_inputs["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    row = Sample([{"role": "user", "content": "a"}], positives=[said("b")], negatives=[said("c d e")])
    encoded = encode_pairs(plain(bert), row, TaskSection(task_type="reranker"), seed=0, training=True)
    assert not isinstance(encoded, str)
    batch = collate_groups([encoded], pad_token_id=0)
    assert batch.queries == 0
    assert batch.targets.tolist() == [1, 0]
    assert batch.texts.further["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]]


def test_a_chat_model_reads_turns_and_is_asked_for_its_answer() -> None:
    tokenizer: Any = make_tiny_tokenizer()
    encoder = TextEncoder(tokenizer, ChatTemplate(tokenizer), max_length=None, truncation="delete", report=TextReport())
    assert tokenizer.decode(encoder.text(said("hello", "assistant")).input_ids) == "<|im_start|>user\nhello<|im_end|>\n"
    assert tokenizer.decode(encoder.conversation(said("hello")).input_ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    query = Sample([{"role": "system", "content": "Same topic?"}, {"role": "user", "content": "q"}])
    text = tokenizer.decode(encoder.pair(query, said("d", "assistant"), instruction="unused", judge="Judge.").input_ids)
    assert "<|im_start|>system\nJudge.<|im_end|>" in text
    assert "<Instruct>: Same topic?\n<Query>: q\n<Document>: d<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n")


def test_documents_are_drawn_for_training_alone_and_the_same_each_time(bert: Any) -> None:
    row = Sample(said("a").messages, positives=[said("b"), said("c")], negatives=[said(text) for text in "defgh"], origin="x")
    section = TaskSection(task_type="embedding", max_negative_samples=3, infonce_hard_negatives=2)
    first, again = (encode_texts(plain(bert), row, section, seed=1, training=True) for _ in range(2))
    assert [len(sample.negatives) for sample in first] == [2]
    assert [sample.negatives for sample in first] == [sample.negatives for sample in again]
    evaluated = encode_texts(plain(bert), row, section, seed=1, training=False)
    assert [len(sample.negatives) for sample in evaluated] == [5, 5]
    assert draw(row.negatives, 9, key="k") == row.negatives


def test_lists_that_teach_nothing_are_counted(bert: Any) -> None:
    section = TaskSection(task_type="reranker", loss_type="listwise_reranker", listwise_min_group_size=3)
    rows = [
        Sample(said("a").messages, negatives=[said("b")]),
        Sample(said("a").messages, positives=[said("b")], negatives=[said("c")]),
        Sample(said("a").messages, positives=[said("b")], negatives=[said("c"), said("d")]),
    ]
    encoder = plain(bert)
    kept = encode_rows(rows, lambda row: encode_pairs(encoder, row, section, seed=0, training=True), encoder.report, on_bad_row="fail")
    assert len(kept) == 1
    assert encoder.report.dropped.total() == 2
    assert "1 dropped: no relevant document" in encoder.report.summary()


def test_bad_rows_say_where_they_are(bert: Any) -> None:
    section, encoder = TaskSection(task_type="embedding"), plain(bert)
    rows = [said("a"), Sample(said("a").messages, positives=[said("b")], origin="rows.jsonl:2")]

    def encode(row: Sample) -> Any:
        return encode_texts(encoder, row, section, seed=0, training=True)

    with pytest.raises(DataError, match=r"rows\.jsonl:1: there is no positive text"):
        encode_rows(rows, encode, TextReport(), on_bad_row="fail")
    report = TextReport()
    assert len(encode_rows(rows, encode, report, on_bad_row="skip")) == 1
    assert report.dropped.total() == 1
