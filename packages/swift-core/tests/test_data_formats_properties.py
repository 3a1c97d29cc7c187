"""What holds for rows of every kind."""

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swift_core.data.formats import convert, to_sample
from swift_core.data.media_tags import TAGS, place, split_legacy
from swift_core.data.values import Refused
from swift_core.errors import DataError

TASKS = ("causal_lm", "preference", "kto", "prompt", "seq_cls", "embedding", "reranker", None)
USER, BOT, WORSE = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "c")))
ROWS = [
    ({"messages": [USER, BOT], "system": "s", "tools": [{"name": "f"}], "channel": "x", "id": 1}, "causal_lm"),
    ({"instruction": "q", "input": "i", "output": "a", "history": [["q0", "a0"]]}, "causal_lm"),
    ({"messages": [USER, BOT], "rejected_response": "c", "margin": 1.5, "images": ["x"], "rejected_images": ["y"]}, "preference"),
    ({"prompt": "q", "chosen": [USER, BOT], "rejected": [USER, WORSE], "score": 1}, "preference"),
    ({"prompt": "q", "completion": "a", "label": False}, "kto"),
    ({"problem": "q", "solution": "1", "difficulty": 3}, "prompt"),
    ({"text": "q", "label": [1, 2], "source": "w"}, "seq_cls"),
    ({"query": "q", "positive": "p", "negative_1": "n", "negative_2": "m", "label": 1.0}, "embedding"),
    ({"query": "q", "documents": ["a", "b"], "labels": [1, 0], "id": 2}, "reranker"),
    (
        {
            "messages": [{"role": "user", "content": "<image><ref-object>"}, {"role": "assistant", "content": "<bbox>"}],
            "images": ["x"],
            "objects": {"ref": ["r"], "bbox": [[1, 2]]},
        },
        "causal_lm",
    ),
]


@pytest.mark.parametrize(("row", "task"), ROWS)
def test_the_order_of_columns_does_not_matter_and_rows_are_left_as_they_are(row, task):
    before = copy.deepcopy(row)
    first = to_sample(row, "f:1", task=task)
    for seed in range(20):
        names = list(row)
        random.Random(seed).shuffle(names)
        assert to_sample({name: row[name] for name in names}, "f:1", task=task) == first
    assert row == before


@pytest.mark.parametrize(("row", "task"), ROWS)
def test_empty_columns_of_other_formats_change_nothing(row, task):
    # Parquet files of several kinds of rows give every row the columns of all of them.
    others = {name: empty for other, _ in ROWS for name, empty in zip(other, [None, "", [], {}] * 10, strict=False) if name not in row}
    assert to_sample({**others, **row}, "f:1", task=task) == to_sample(row, "f:1", task=task)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=True) | st.sampled_from(["", "q", "<image>", "[1]", "{}", "true"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type", "ref", "bbox"]), inner, max_size=3)
    ),
    max_leaves=6,
)
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool", "tool_call"]), "content": json_values}),
    max_size=4,
)
columns = st.sampled_from(
    [
        "messages",
        "conversations",
        "system",
        "query",
        "response",
        "prompt",
        "completion",
        "instruction",
        "input",
        "output",
        "history",
        "text",
        "chosen",
        "rejected",
        "rejected_response",
        "rejected_messages",
        "margin",
        "label",
        "labels",
        "kto_tag",
        "positive_messages",
        "negative_messages",
        "positive",
        "negative",
        "document",
        "images",
        "videos",
        "audio",
        "objects",
        "tools",
        "channel",
        "chat_template_kwargs",
        "sentence1",
        "sentence2",
        "score",
        "positive_images",
        "rejected_images",
        "solution",
    ]
)


@given(st.dictionaries(columns, json_values | turns, max_size=6), st.sampled_from(TASKS), st.booleans())
def test_any_row_is_a_sample_or_a_reasoned_refusal(row, task, auto):
    try:
        sample = to_sample(row, "f:1", task=task, auto_columns=auto)
    except DataError as refused:
        assert refused.location == "f:1"
        assert len(refused.message) > 10
        return
    for part in (sample, *([sample.rejected] if sample.rejected else []), *sample.positives, *sample.negatives):
        assert part.origin == "f:1"
        assert all(isinstance(message["content"], str) for message in part.messages)
        for kind, tag in TAGS.items():
            sources = getattr(part, kind)
            assert not sources or len(sources) == sum(message["content"].count(tag) for message in part.messages)


@given(st.lists(st.sampled_from(["text ", "<image>", "<img>own</img>", "<video>"]), max_size=8), st.integers(0, 4))
def test_every_tag_has_one_source_in_order(pieces, given_images):
    text, found = split_legacy("".join(pieces))
    images = [f"{number}.png" for number in range(given_images)]
    videos = ["v"] * pieces.count("<video>")
    tags = pieces.count("<image>") + pieces.count("<img>own</img>")
    sources = {(0, at): source for at, source in found.items()}
    try:
        messages, media = place([{"role": "user", "content": text}, BOT], sources, {"images": images, "videos": videos})
    except Refused:
        assert pieces.count("<image>") != given_images
        return
    rest = iter(images)
    wanted = ["own" if piece == "<img>own</img>" else next(rest) for piece in pieces if "im" in piece] if tags else images
    assert media["images"] == wanted
    assert messages[0]["content"].replace("<image>", "") == text.replace("<image>", "")
    assert messages[0]["content"].count("<image>") == max(tags, given_images)


@given(st.permutations(range(len(ROWS))))
def test_rows_do_not_influence_one_another(order):
    alone = [convert(row, "f:1", task=task) for row, task in ROWS]
    assert [convert(ROWS[place][0], "f:1", task=ROWS[place][1]) for place in order] == [alone[place] for place in order]
