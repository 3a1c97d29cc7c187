"""Rows with two answers, or with a judged one."""

import pytest
from swift_core.data.formats import to_sample
from swift_core.errors import DataError

USER, BOT, WORSE = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "c")))
SYSTEM = {"role": "system", "content": "s"}
CALL, RESULT = {"role": "tool_call", "content": "{}"}, {"role": "tool_response", "content": "1"}
FROM_USER, FROM_BOT, FROM_WORSE = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "gpt", "value": "c"}


@pytest.mark.parametrize(
    ("row", "chosen", "rejected"),
    [
        ({"messages": [SYSTEM, USER, BOT], "rejected_response": "c"}, [SYSTEM, USER, BOT], [SYSTEM, USER, WORSE]),
        ({"messages": [USER, BOT], "rejected_response": [WORSE]}, [USER, BOT], [USER, WORSE]),
        ({"messages": [USER, BOT], "rejected_response": ["c"]}, [USER, BOT], [USER, WORSE]),
        ({"messages": [USER, BOT], "rejected_messages": [USER, WORSE]}, [USER, BOT], [USER, WORSE]),
        ({"messages": [USER, BOT], "rejected_messages": [WORSE]}, [USER, BOT], [USER, WORSE]),
        ({"messages": [SYSTEM, USER, BOT], "rejected_messages": [USER, WORSE]}, [SYSTEM, USER, BOT], [SYSTEM, USER, WORSE]),
        ({"query": "q", "response": "a", "rejected_response": "c", "system": "s"}, [SYSTEM, USER, BOT], [SYSTEM, USER, WORSE]),
        ({"prompt": "q", "chosen": "a", "rejected": "c"}, [USER, BOT], [USER, WORSE]),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "c"}, [USER, BOT], [USER, WORSE]),
        ({"prompt": [SYSTEM, USER], "chosen": [BOT], "rejected": [WORSE]}, [SYSTEM, USER, BOT], [SYSTEM, USER, WORSE]),
        ({"chosen": [USER, BOT], "rejected": [USER, WORSE]}, [USER, BOT], [USER, WORSE]),
        ({"chosen": [USER, BOT], "rejected": [USER, WORSE], "system": "s"}, [SYSTEM, USER, BOT], [SYSTEM, USER, WORSE]),
        ({"prompt": "q", "messages": [USER, BOT], "chosen": [USER, BOT], "rejected": [USER, WORSE]}, [USER, BOT], [USER, WORSE]),
        ({"conversations": [FROM_USER], "chosen": FROM_BOT, "rejected": FROM_WORSE}, [USER, BOT], [USER, WORSE]),
        ({"conversations": [FROM_USER, FROM_BOT], "chosen": FROM_BOT, "rejected": FROM_WORSE}, [USER, BOT], [USER, WORSE]),
        # A text takes the place of the last answer, a list that of all that follows the question.
        ({"messages": [USER, CALL, RESULT, BOT], "rejected_response": "c"}, [USER, CALL, RESULT, BOT], [USER, CALL, RESULT, WORSE]),
        ({"messages": [USER, CALL, RESULT, BOT], "rejected_response": [WORSE]}, [USER, CALL, RESULT, BOT], [USER, WORSE]),
    ],
)
def test_pairs(row, chosen, rejected):
    sample = to_sample(row, "f:1", task="preference")
    assert sample.messages == chosen
    assert sample.rejected.messages == rejected
    assert sample.rejected.origin == "f:1"
    assert sample.extra == {}


def test_other_columns_of_a_pair_are_kept():
    row = {"prompt": "other words", "chosen": [USER, BOT], "rejected": [USER, WORSE], "score_chosen": 9}
    assert to_sample(row, "f:1", task="preference").extra == {"prompt": "other words", "score_chosen": 9}


def test_both_answers_share_media_tools_and_variables():
    row = {
        "messages": [{"role": "user", "content": "<image>q"}, BOT],
        "rejected_response": "c",
        "images": ["a.png"],
        "tools": [{"name": "f"}],
        "channel": "x",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    sample = to_sample(row, "f:1", task="preference")
    for name in ("images", "tools", "channel", "chat_template_kwargs"):
        assert getattr(sample, name) == getattr(sample.rejected, name)
    assert sample.images == ["a.png"]


def test_the_rejected_answer_may_be_about_other_media_or_tools():
    turns = [{"role": "user", "content": "<image>q"}, BOT]
    sample = to_sample({"messages": turns, "images": ["a.png"], "rejected_images": ["b.png"]}, "f:1", task="preference")
    assert (sample.images, sample.rejected.images) == (["a.png"], ["b.png"])
    assert sample.rejected.messages == sample.messages
    row = {"messages": [USER, BOT], "rejected_response": "c", "tools": [{"name": "f"}], "rejected_tools": [{"name": "g"}]}
    assert to_sample(row, "f:1", task="preference").rejected.tools == [{"type": "function", "function": {"name": "g"}}]


def test_margin():
    row = {"messages": [USER, BOT], "rejected_response": "c", "margin": "0.5"}
    assert to_sample(row, "f:1", task="preference").margin == 0.5
    with pytest.raises(DataError, match="column 'margin' is 'wide', not a number"):
        to_sample({**row, "margin": "wide"}, "f:1", task="preference")
    assert to_sample({"messages": [USER, BOT], "margin": "wide"}, "f:1").extra == {"margin": "wide"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER, BOT]}, "there is no rejected answer"),
        ({"messages": [USER, BOT], "rejected_response": ""}, "there is no rejected answer"),
        ({"messages": [USER, BOT], "rejected_response": "a"}, "the rejected answer is the preferred one"),
        ({"messages": [USER, BOT], "rejected_response": " "}, "the answer in turn 2 is empty"),
        ({"messages": [USER, BOT], "rejected_response": ["x", "y"]}, "holds 2 answers .*one row for each"),
        ({"messages": [USER, BOT], "rejected_response": {"text": "c"}}, "is an object without a role"),
        ({"messages": [USER, BOT], "rejected_messages": [USER]}, "last turn is from user"),
        ({"messages": [USER, BOT], "chosen": "z", "rejected": "c"}, "turns end with an answer, and column 'chosen' has another one"),
        ({"prompt": "q", "chosen": "a"}, "a question .'prompt'. but no answer"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "no answer"),
        ({"prompt": "q", "chosen": {"role": "assistant"}, "rejected": "c"}, "turn 1 has 'role'"),
    ],
)
def test_what_is_no_pair(row, reason):
    with pytest.raises(DataError, match=f"(?s)^f:3: .*{reason}"):
        to_sample(row, "f:3", task="preference")


def test_sft_refuses_pairs_and_prompts_take_them():
    row = {"prompt": "q", "chosen": "a", "rejected": "c"}
    with pytest.raises(DataError, match=r"preference pair, not one conversation .*swift rlhf"):
        to_sample(row, "f:1")
    assert to_sample(row, "f:1", task="prompt").messages[0] == USER
    assert to_sample(row, "f:1", task=None).rejected is not None


def test_a_flag_called_rejected_is_no_answer():
    assert to_sample({"messages": [USER, BOT], "rejected": False}, "f:1").rejected is None


@pytest.mark.parametrize(
    ("columns", "label"),
    [({"label": True}, True), ({"label": False}, False), ({"kto_tag": False}, False), ({"label": "True"}, True), ({"label": 0}, False)],
)
def test_kto(columns, label):
    sample = to_sample({"messages": [USER, BOT], **columns}, "f:1", task="kto")
    assert sample.label is label
    assert to_sample({"prompt": "q", "completion": "a", **columns}, "f:1", task="kto").messages == [USER, BOT]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER, BOT]}, "there is no label, and KTO needs"),
        ({"messages": [USER, BOT], "label": "maybe"}, "the label is 'maybe', and KTO needs"),
        ({"messages": [USER, BOT], "label": 2}, "the label is 2"),
        ({"messages": [USER], "label": True}, "last turn is from user"),
        ({"messages": [USER, BOT], "label": True, "rejected_response": "c"}, "KTO takes one judged answer a row"),
    ],
)
def test_kto_refuses(row, reason):
    with pytest.raises(DataError, match=reason):
        to_sample(row, "f:1", task="kto")
