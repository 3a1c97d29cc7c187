"""The thinking policy: switches, thoughts of earlier answers, empty blocks, prefixes of answers."""

from typing import Any

import pytest
from swift_core.config.sections import TemplateSection
from swift_core.errors import TemplateError
from swift_core.protocols import Sample
from swift_core.templates.chat import ChatTemplate, build_template
from swift_core.testing.tiny import make_tiny_tokenizer

# Three ways of makers: Qwen 3 switches and strips, DeepSeek names the switch differently, some know nothing of thoughts.
STRIP = (
    "{% set last = namespace(at=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set last.at = loop.index0 %}{% endif %}{% endfor %}"
)
BODY = "{{ m.content if loop.index0 > last.at else m.content.split('</think>')[-1].lstrip() }}"
TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}" + BODY + "{{ '<|im_end|>\n' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
QWEN = (
    STRIP
    + TURNS
    + PROMPT
    + "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
DEEPSEEK = STRIP + TURNS + PROMPT + "{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}{% endif %}"
ALWAYS = STRIP + TURNS + PROMPT + "{{ '<think>\n' }}{% endif %}"
CLEAR = TURNS.replace("loop.index0 > last.at", "loop.index0 > last.at or not clear_thinking") + PROMPT + "{% endif %}"
THOUGHT = "<think>\nhm\n</think>\n\n"


def build(jinja: str | None = None, **values: Any) -> ChatTemplate:
    tokenizer = make_tiny_tokenizer()
    if jinja:
        tokenizer.chat_template = jinja
    return build_template(tokenizer, TemplateSection(**values))


def chat(*texts: str) -> Any:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def trained(template: ChatTemplate, messages: Any, **more: Any) -> list[str]:
    marked = template.mark(Sample(messages, **more))
    return [marked.text[start:stop] for start, stop in marked.spans]


@pytest.mark.parametrize(
    ("jinja", "enable", "prompt"),
    [
        (QWEN, None, "assistant\n"),
        (QWEN, True, "assistant\n"),
        (QWEN, False, "assistant\n<think>\n\n</think>\n\n"),
        (DEEPSEEK, None, "</think>"),
        (DEEPSEEK, True, "<think>"),
        (ALWAYS, True, "<think>\n"),
    ],
)
def test_the_switch_goes_under_the_name_that_the_template_knows(jinja, enable, prompt):
    assert build(jinja, enable_thinking=enable).render(chat("q"), add_generation_prompt=True).endswith(prompt)


@pytest.mark.parametrize(
    ("jinja", "values", "reason"),
    [
        (None, {"enable_thinking": False}, "no switch for thinking"),
        (None, {"enable_thinking": True}, "no switch for thinking"),
        (ALWAYS, {"enable_thinking": False}, "no switch for thinking"),
        (QWEN, {"preserve_thinking": True}, "removes the thoughts of earlier answers"),
        (None, {"add_non_thinking_prefix": True}, "has no empty thinking block"),
        (None, {"use_chat_template": False, "enable_thinking": True}, "no effect where texts are joined"),
    ],
)
def test_what_a_template_cannot_do_is_refused(jinja, values, reason):
    with pytest.raises(TemplateError, match=reason):
        build(jinja, **values)


def test_thoughts_of_earlier_answers_are_removed_where_the_template_keeps_them():
    messages = chat("q", f"{THOUGHT}one", "q", f"{THOUGHT}two")
    assert trained(build(), messages) == [f"{THOUGHT}one<|im_end|>", f"{THOUGHT}two<|im_end|>"]
    assert trained(build(preserve_thinking=False), messages) == ["one<|im_end|>", f"{THOUGHT}two<|im_end|>"]
    assert trained(build(preserve_thinking=True), messages) == trained(build(), messages)


def test_thoughts_of_earlier_answers_by_a_switch_that_means_the_opposite():
    messages = chat("q", f"{THOUGHT}one", "q", "two")
    jinja = STRIP + CLEAR
    assert "hm" in build(jinja, preserve_thinking=True).render(messages)
    assert "hm" not in build(jinja, preserve_thinking=False).render(messages)


def test_thoughts_in_a_field_of_their_own():
    messages: Any = [*chat("q"), {"role": "assistant", "content": "one", "reasoning_content": "hm"}]
    assert trained(build(), messages) == [f"{THOUGHT}one<|im_end|>"]
    assert trained(build(preserve_thinking=False), [*messages, *chat("q", "two")]) == ["one<|im_end|>", "two<|im_end|>"]
    with_field = "{% for m in messages %}{{ m.role + ':' + (m.thinking or '') + '|' + m.content + '<|im_end|>' }}{% endfor %}"
    assert "assistant:hm|one" in build(with_field).render(messages)
    assert "assistant:hm|one" in build(with_field).render(chat("q", f"{THOUGHT}one"))


def test_empty_blocks_are_left_out_of_the_loss_of_models_that_can_think_or_not():
    messages = chat("q", "<think>\n\n</think>\n\none")
    assert trained(build(QWEN), messages) == ["one<|im_end|>"]
    assert trained(build(QWEN, ignore_empty_think=False), messages) == ["<think>\n\n</think>\n\none<|im_end|>"]
    assert trained(build(), messages) == ["<think>\n\n</think>\n\none<|im_end|>"]
    assert trained(build(ignore_empty_think=True), messages) == ["one<|im_end|>"]
    assert trained(build(QWEN), chat("q", f"{THOUGHT}one")) == [f"{THOUGHT}one<|im_end|>"]
    assert trained(build(template="glm4_5"), chat("q", "one")) == ["one<|user|>"]
    assert trained(build(template="deepseek_v3_1"), chat("q", "one")) == ["one<｜end▁of▁sentence｜>"]


def test_answers_without_thoughts_open_with_the_empty_block():
    assert "assistant\n<think>\n\n</think>\n\none" in build(QWEN, add_non_thinking_prefix=True).render(chat("q", "one"))
    assert "</think>" not in build(QWEN).render(chat("q", "one"))
    assert "</think>" not in build(template="qwen3", add_non_thinking_prefix=False).render(chat("q", "one"))
    assert "</think>\n\none" in build(template="qwen3").render(chat("q", "one"))
    filling = QWEN.replace(BODY, "{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}" + BODY)
    with pytest.raises(TemplateError, match="adds an empty thinking block by itself"):
        build(filling, add_non_thinking_prefix=False)


def test_the_response_prefix_is_part_of_the_prompt_and_not_of_training():
    template = build(response_prefix="Well, ")
    assert template.render(chat("q"), add_generation_prompt=True).endswith("assistant\nWell, ")
    assert template.tokenizer.decode(template.encode_prompt(chat("q"))).endswith("assistant\nWell, ")
    assert "Well" not in template.render(chat("q", "one"))


def test_rows_and_requests_have_their_own_switches():
    template = build(QWEN)
    off = {"enable_thinking": False, "max_pixels": 1000}
    assert template.render(chat("q"), add_generation_prompt=True, variables=off).endswith("</think>\n\n")
    assert template.encode_prompt(chat("q"), None, off) != template.encode_prompt(chat("q"))
    assert template.render(chat("q"), add_generation_prompt=True, variables={"response_prefix": "A"}).endswith("assistant\nA")
    kept = chat("q", "<think>\n\n</think>\n\none")
    assert trained(template, kept, chat_template_kwargs={"ignore_empty_think": False}) == ["<think>\n\n</think>\n\none<|im_end|>"]
    with pytest.raises(TemplateError, match=r"^rows:3: .*no variable 'loud'"):
        template.mark(Sample(chat("q", "a"), chat_template_kwargs={"loud": True}, origin="rows:3"))
    with pytest.raises(TemplateError, match="enable_thinking is 'no'"):
        template.mark(Sample(chat("q", "a"), chat_template_kwargs={"enable_thinking": "no"}))


def test_media_are_refused_by_text_models():
    with pytest.raises(TemplateError, match=r"^f:1: the row has images") as caught:
        build().mark(Sample(chat("<image>q", "a"), images=["cat.png"], origin="f:1"))
    assert "multimodal model" in str(caught.value)
