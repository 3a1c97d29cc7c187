"""Rows for classification, embedding, reranking and prompts, and what each task takes."""

import pytest
from swift_core.data.formats import convert, to_sample
from swift_core.data.task_rows import check_task
from swift_core.data.values import Refused
from swift_core.errors import DataError
from swift_core.protocols import Sample

USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def texts(samples):
    return [(sample.messages[-1]["role"], sample.messages[-1]["content"]) for sample in samples]


@pytest.mark.parametrize(
    ("label", "taken"),
    [(1, 1), (0.25, 0.25), ([0, 2], [0, 2]), ([0.5, -1.5], [0.5, -1.5]), ("2", 2), ("0.5", 0.5), ("[1, 0]", [1, 0]), (True, 1), ([], [])],
)
@pytest.mark.parametrize("columns", [{"messages": [USER]}, {"text": "q"}, {"query": "q"}, {"sentence": "q"}])
def test_seq_cls(columns, label, taken):
    sample = to_sample({**columns, "label": label}, "f:1", task="seq_cls")
    assert sample.messages == [USER]
    assert sample.label == taken
    assert type(sample.label) is type(taken)


@pytest.mark.parametrize(
    "columns", [("sentence1", "sentence2"), ("premise", "hypothesis"), ("text", "text_pair"), ("question1", "question2")]
)
def test_text_pairs_of_seq_cls_are_one_question(columns):
    sample = to_sample({columns[0]: "x", columns[1]: "y", "label": 1}, "f:1", task="seq_cls")
    assert sample.messages == [{"role": "user", "content": "x\ny"}]


def test_a_judged_answer_can_be_classified():
    assert to_sample({"messages": [USER, BOT], "label": 1}, "f:1", task="seq_cls").messages == [USER, BOT]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "q"}, "there is no label"),
        ({"text": "q", "label": "good"}, "the label is 'good' .*number the classes"),
        ({"text": "q", "label": [1, "x"]}, r"the label is \[1, 'x'\]"),
        ({"text": "q", "label": float("inf")}, "inf, not a finite number"),
        ({"text": "q", "label": "[1"}, "column 'label' is not valid JSON"),
        ({"messages": [{"role": "system", "content": "s"}], "label": 1}, "conversation is empty"),
    ],
)
def test_seq_cls_refuses(row, reason):
    with pytest.raises(DataError, match=reason):
        to_sample(row, "f:1", task="seq_cls")


@pytest.mark.parametrize(
    ("row", "positives", "negatives"),
    [
        (
            {
                "messages": [USER],
                "positive_messages": [[{"role": "user", "content": "p"}]],
                "negative_messages": [[{"role": "user", "content": "n"}], [{"role": "user", "content": "m"}]],
            },
            ["p"],
            ["n", "m"],
        ),
        ({"messages": [USER], "positive_messages": [{"role": "user", "content": "p"}]}, ["p"], []),
        ({"messages": [USER], "positive_messages": '[["p"]]', "negative_messages": ["n"]}, ["p"], ["n"]),
        ({"query": "q", "positive": "p", "negative": "n"}, ["p"], ["n"]),
        ({"query": "q", "positives": ["p", "o"], "negatives": ["n", "m"]}, ["p", "o"], ["n", "m"]),
        ({"query": "q", "pos": ["p"], "neg": ["n"]}, ["p"], ["n"]),
        ({"anchor": "q", "positive": "p", "negative_10": "z", "negative_2": "m"}, ["p"], ["m", "z"]),
        ({"query": "q", "response": "p", "rejected_response": ["n"]}, ["p"], ["n"]),
        ({"sentence1": "q", "sentence2": "p"}, ["p"], []),
        ({"query": "q", "document": "p"}, ["p"], []),
    ],
)
def test_embedding(row, positives, negatives):
    sample = to_sample(row, "f:1", task="embedding")
    assert sample.messages == [USER]
    assert texts(sample.positives) == [("user", text) for text in positives]
    assert texts(sample.negatives) == [("user", text) for text in negatives]
    assert (sample.rejected, sample.extra) == (None, {})
    assert {companion.origin for companion in (*sample.positives, *sample.negatives)} == {"f:1"}


@pytest.mark.parametrize("columns", [{"label": 0.8}, {"score": 0.8}, {"similarity_score": "0.8"}])
def test_similarity(columns):
    assert to_sample({"sentence1": "q", "sentence2": "p", **columns}, "f:1", task="embedding").label == 0.8


def test_media_of_texts_to_compare():
    row = {
        "messages": [{"role": "user", "content": "<image>"}],
        "images": ["q.png"],
        "positive_messages": [[{"role": "user", "content": "a cat"}]],
        "negative_messages": [[{"role": "user", "content": "<image>"}], [{"role": "user", "content": "<image>b"}]],
        "negative_images": [["1.png"], ["2.png"]],
    }
    sample = to_sample(row, "f:1", task="embedding")
    assert (sample.images, sample.positives[0].images) == (["q.png"], [])
    assert [negative.images for negative in sample.negatives] == [["1.png"], ["2.png"]]


@pytest.mark.parametrize(
    ("row", "label", "positives", "negatives"),
    [
        (
            {
                "messages": [USER],
                "positive_messages": [[{"role": "assistant", "content": "p"}]],
                "negative_messages": [[{"role": "assistant", "content": "n"}]],
            },
            None,
            ["p"],
            ["n"],
        ),
        ({"query": "q", "positive": ["p", "o"], "negative": ["n"]}, None, ["p", "o"], ["n"]),
        ({"query": "q", "document": "p", "label": 1}, 1, ["p"], []),
        ({"query": "q", "passage": "n", "label": 0}, 0, [], ["n"]),
        ({"query": "q", "documents": ["n", "p"], "labels": [0, 1]}, None, ["p"], ["n"]),
        ({"sentence1": "q", "sentence2": "n", "label": "0"}, 0, [], ["n"]),
    ],
)
def test_reranker(row, label, positives, negatives):
    sample = to_sample(row, "f:1", task="reranker")
    assert (sample.messages, sample.label) == ([USER], label)
    assert texts(sample.positives) == [("assistant", text) for text in positives]
    assert texts(sample.negatives) == [("assistant", text) for text in negatives]


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        ("embedding", {"query": "q"}, "no second text to compare with"),
        ("embedding", {"query": "q", "positive": "p", "label": "near"}, "the similarity is 'near'"),
        ("embedding", {"query": "q", "positive": [" "]}, "positive 1 of column 'positive' is empty"),
        ("embedding", {"query": "q", "positive_messages": [["p", "o"]]}, "positive 1 of column 'positive_messages' is a list, not a text"),
        ("embedding", {"query": "q", "negative_messages": [USER, BOT]}, "not clear which belong together .*list of lists"),
        ("reranker", {"query": "q"}, "no document to rank"),
        ("reranker", {"query": "q", "documents": ["a", "b"], "labels": [1]}, "2 documents and 1 labels"),
        ("reranker", {"query": "q", "document": "a", "label": "good"}, "label of a document is 'good'"),
        ("prompt", {"messages": [BOT]}, "no question to answer"),
        ("causal_lm", {"messages": [USER, BOT], "positive_messages": [[USER]]}, "texts to compare, not one conversation"),
        ("causal_lm", {"messages": [USER]}, "last turn is from user"),
    ],
)
def test_reasons(task, row, reason):
    with pytest.raises(DataError, match=f"(?s)^f:3: .*{reason}"):
        to_sample(row, "f:3", task=task)


def test_prompts_keep_what_rewards_need():
    row = {"messages": [USER], "solution": "42", "task": "math", "env_config": {"seed": 1}, "label": 3}
    sample = to_sample(row, "f:1", task="prompt")
    assert sample.messages == [USER]
    assert sample.extra == {"solution": "42", "task": "math", "env_config": {"seed": 1}, "label": 3}
    assert to_sample({"prompt": [USER], "ground_truth": "x"}, "f:1", task="prompt").extra == {"ground_truth": "x"}
    assert to_sample({"problem": "q", "teacher_prompt": "t"}, "f:1", need_answer=False).extra == {"teacher_prompt": "t"}


def test_channel_and_variables_of_the_template():
    row = {"messages": [USER, BOT], "channel": "math", "chat_template_kwargs": {"enable_thinking": False, "fps": None}}
    sample = to_sample(row, "f:1")
    assert (sample.channel, sample.chat_template_kwargs, sample.extra) == ("math", {"enable_thinking": False}, {})
    assert to_sample({**row, "channel": 3}, "f:1").channel == "3"
    assert to_sample({**row, "chat_template_kwargs": '{"a": 1}'}, "f:1").chat_template_kwargs == {"a": 1}
    for column, reason in (("channel", "is a list, not a name"), ("chat_template_kwargs", "is a list, not an object")):
        with pytest.raises(DataError, match=f"column '{column}' {reason}"):
            to_sample({**row, column: [1]}, "f:1")


def test_check_task_is_a_question_of_the_sample_alone():
    pair = Sample([USER, BOT], rejected=Sample([USER, {**BOT, "content": "c"}]))
    assert check_task(pair, "preference") == ""
    for task in ("causal_lm", "kto", "seq_cls", "embedding", "reranker"):
        with pytest.raises(Refused):
            check_task(pair, task)
    judged = Sample([USER, BOT], label=False)
    assert "trained like all others" in check_task(judged, "causal_lm")
    assert check_task(Sample([USER, BOT], label=True), "causal_lm") == ""
    assert check_task(judged, "kto") == ""


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        ({"messages": [USER, BOT]}, True),
        ({"query": "q", "response": "a"}, True),
        ({"instruction": "q", "output": "a"}, True),
        ({"text": "a"}, True),
        ({"conversations": [USER, BOT]}, False),
        ({"Query": "q", "Response": "a"}, False),
        ({"question": "q", "answer": "a"}, False),
        ({"prompt": "q", "completion": "a"}, False),
    ],
)
def test_aliases_can_be_switched_off(row, fits):
    assert to_sample(row, "f:1").messages
    if fits:
        assert to_sample(row, "f:1", auto_columns=False) == to_sample(row, "f:1")
    else:
        with pytest.raises(DataError, match="no format fits the columns"):
            to_sample(row, "f:1", auto_columns=False)


def test_columns_that_differ_by_case_only():
    row = {"Query": "other", "query": "q", "response": "a"}
    for order in (row, dict(reversed(row.items()))):
        sample = to_sample(order, "f:1")
        assert (sample.messages, sample.extra) == ([USER, BOT], {"Query": "other"})


def test_convert_names_the_format():
    assert convert({"prompt": "q", "chosen": "a", "rejected": "c"}, "f:1", task="preference")[1] == "prompt/chosen"
    assert convert({"sentence1": "q", "sentence2": "c"}, "f:1", task="embedding")[1] == "sentence1/sentence2"
