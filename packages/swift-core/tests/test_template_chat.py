"""ChatTemplate as the trainer and the engines use it."""

from typing import Any

import pytest
from swift_core.config.sections import TemplateSection
from swift_core.errors import NotFoundError, RegistryError, TemplateError
from swift_core.protocols import Sample
from swift_core.templates.chat import ChatTemplate, build_template
from swift_core.testing.tiny import make_tiny_tokenizer
from transformers import ByT5Tokenizer

CHAT: Any = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "And 你好?"},
    {"role": "assistant", "content": "好。"},
]
CALL = {"name": "add", "arguments": {"a": 1}}
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}]
TOOL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson + '\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ '<call>' + call.function | tojson + '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build(**values: Any) -> ChatTemplate:
    tokenizer = make_tiny_tokenizer()
    return build_template(tokenizer, TemplateSection(**values))


def trained(template: ChatTemplate, messages: Any, **extra: Any) -> str:
    encoded = template.encode(Sample(messages, **extra))
    return str(template.tokenizer.decode([label for label in encoded.labels if label != -100]))


def test_ids_are_those_of_the_tokenizers_own_rendering():
    template = build()
    encoded = template.encode(Sample(CHAT))
    assert encoded.input_ids == template.tokenizer.apply_chat_template(CHAT, tokenize=True)["input_ids"]
    assert (
        template.encode_prompt(CHAT[:3])
        == template.tokenizer.apply_chat_template(CHAT[:3], tokenize=True, add_generation_prompt=True)["input_ids"]
    )
    assert all(label in (-100, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))


def test_the_newline_after_the_end_of_turn_is_not_trained():
    template = build()
    encoded = template.encode(Sample(CHAT))
    assert template.tokenizer.decode(encoded.input_ids[-1:]) == "\n"
    assert encoded.labels[-1] == -100
    assert template.tokenizer.decode(encoded.labels[-2:-1]) == "<|im_end|>"


@pytest.mark.parametrize(
    ("loss_scale", "flags", "expected"),
    [
        ("default", {}, "A model.<|im_end|>好。<|im_end|>"),
        ("last_round", {}, "好。<|im_end|>"),
        ("default", {1: False}, "好。<|im_end|>"),
        ("default", {1: None}, "A model.<|im_end|>好。<|im_end|>"),
        ("last_round", {1: True, 3: False}, "A model.<|im_end|>"),
        ("default", {0: False}, "A model.<|im_end|>好。<|im_end|>"),
    ],
)
def test_which_answers_are_trained(loss_scale, flags, expected):
    messages: Any = [{**message, "loss": flags[index]} if index in flags else message for index, message in enumerate(CHAT)]
    assert trained(build(loss_scale=loss_scale), messages) == expected


def test_all_trains_every_token_but_the_messages_that_say_no():
    template = build(loss_scale="all")
    assert trained(template, CHAT) == template.render(CHAT)
    off = [CHAT[0], {**CHAT[1], "loss": False}, *CHAT[2:]]
    assert trained(template, off) == template.render(CHAT).replace("A model.<|im_end|>", "")


def test_loss_on_a_user_message_is_refused():
    with pytest.raises(TemplateError, match="message 1 has loss: true"):
        build().mark(Sample([{**CHAT[0], "loss": True}, CHAT[1]]))


def test_loss_flags_work_with_marks_too():
    messages = [CHAT[0], {**CHAT[1], "loss": False}, *CHAT[2:]]
    assert trained(build(template="chatml"), messages) == "好。<|im_end|>"


def test_plain_text_gets_bos_and_eos():
    tokenizer = ByT5Tokenizer()
    template = build_template(tokenizer, TemplateSection(use_chat_template=False, loss_scale="all"))
    text: Any = [{"role": "assistant", "content": "ab"}]
    assert template.encode(Sample(text)).input_ids == tokenizer("ab")["input_ids"]
    assert template.encode(Sample(text)).labels == tokenizer("ab")["input_ids"]
    assert template.encode_prompt(text) == tokenizer("ab", add_special_tokens=False)["input_ids"]


def test_messages_are_joined_without_anything_between_them():
    template = build(use_chat_template=False)
    assert template.render(CHAT) == "Who are you?A model.And 你好?好。"
    assert trained(template, CHAT) == "A model.好。<|im_end|>"
    assert trained(template, CHAT[:3]) == "A model."


def test_bos_is_put_before_plain_text_when_the_tokenizer_does_so():
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    template = ChatTemplate(tokenizer, use_chat_template=False, loss_scale="all")
    assert template.encode(Sample(CHAT[:1])).input_ids[0] == bos
    assert template.encode_prompt(CHAT[:1])[0] == bos
    chatml = build_template(tokenizer, TemplateSection(template="chatml"))
    assert chatml.encode(Sample(CHAT)).input_ids[:2] == [bos, tokenizer.convert_tokens_to_ids("<|im_start|>")]


def test_a_slow_tokenizer_is_masked_by_prefixes():
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    template = build_template(tokenizer, TemplateSection(template="zephyr"))
    assert trained(template, CHAT) == "A model.</s>好。</s>"


def test_system_is_used_for_rows_without_one(tmp_path):
    file = tmp_path / "system.txt"
    file.write_text("Be brief.\n", encoding="utf-8")
    own: Any = [{"role": "system", "content": "Mine."}, *CHAT]
    for system in ("Be brief.", str(file)):
        template = build(system=system)
        assert template.render(CHAT).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
        assert template.encode(Sample(CHAT)).input_ids[: len(template.encode_prompt(CHAT[:1]))] == template.encode_prompt(CHAT[:1])
        assert "Be brief" not in template.render(own)
    with pytest.raises(NotFoundError, match="no such file"):
        build(system=str(tmp_path / "absent.txt"))


def test_stop_tokens():
    template = build()
    assert template.stop_words == ["<|im_end|>"]
    assert template.stop_token_ids == [template.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    llama = build(template="llama3")
    assert llama.stop_words == ["<|eot_id|>", "<|im_end|>"]  # not one token here: matched as text
    assert llama.stop_token_ids == [llama.tokenizer.eos_token_id]


def test_a_named_template_becomes_the_tokenizers_own():
    template = build(template="chatml")
    jinja = str(template.tokenizer.chat_template)
    assert "generation %}" not in jinja.replace("add_generation_prompt %}", "")
    assert template.tokenizer.apply_chat_template(CHAT, tokenize=True)["input_ids"] == template.encode(Sample(CHAT)).input_ids


def test_a_model_without_chat_template_is_told_what_to_do():
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(TemplateError, match="no chat template") as caught:
        build_template(tokenizer, TemplateSection())
    assert "--template chatml" in str(caught.value)
    assert build_template(tokenizer, TemplateSection(use_chat_template=False)).render(CHAT[:1]) == "Who are you?"


def test_bad_settings_are_refused():
    with pytest.raises(RegistryError, match="chatml"):
        build(template="chatlm")
    with pytest.raises(TemplateError, match="no variable 'enable_thinking'"):
        build(chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(TemplateError, match="--template has no effect"):
        build(template="chatml", use_chat_template=False)


def test_chat_template_variables_reach_the_template():
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = "{% if loud %}{{ 'LOUD ' }}{% endif %}" + str(tokenizer.chat_template)
    assert build_template(tokenizer, TemplateSection(chat_template_kwargs={"loud": True})).render(CHAT).startswith("LOUD <|im_start|>")


def test_what_a_template_refuses_is_said_with_the_rows_origin():
    sample = Sample([*CHAT[:2], {"role": "judge", "content": "3"}], origin="rows.jsonl:7")
    with pytest.raises(
        TemplateError, match=r"^rows\.jsonl:7: the chat template refuses these messages \(roles: user assistant judge\): .*role judge"
    ):
        build(template="mistral").mark(sample)


def test_tool_turns_become_calls_and_are_trained():
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = TOOL_TEMPLATE
    template = build_template(tokenizer, TemplateSection(loss_scale="last_round"))
    rows: Any = [
        {"role": "user", "content": "1+?"},
        {"role": "tool_call", "content": '{"name": "add", "arguments": {"a": 1}}'},
        {"role": "tool_call", "content": '{"name": "add", "arguments": "{\\"a\\": 1}"}'},
        {"role": "tool_response", "content": "2"},
        {"role": "assistant", "content": "Two."},
    ]
    one = '<call>{"name": "add", "arguments": {"a": 1}}</call>'
    assert trained(template, rows, tools=TOOLS) == f"{one}{one}<|im_end|>Two.<|im_end|>"
    assert "<|im_start|>tool\n2<|im_end|>" in template.render(rows, TOOLS)
    openai: Any = [rows[0], {"role": "assistant", "content": "", "tool_calls": [{"id": "x", "type": "function", "function": CALL}]}]
    assert trained(template, openai) == f"{one}<|im_end|>"
    with pytest.raises(TemplateError, match="message 2: the tool call is not JSON"):
        template.mark(Sample([rows[0], {"role": "tool_call", "content": "add(1)"}]))


def test_tools_that_a_template_cannot_show():
    template = build()
    assert template.mark(Sample(CHAT, tools=TOOLS)).notes == (
        "its tools are left out: the chat template has no place for them (see --agent_template)",
    )
    with pytest.raises(TemplateError, match="cannot render them"):
        template.mark(Sample([CHAT[0], {"role": "tool_call", "content": '{"name": "add"}'}]))
