"""The table of named prompt formats: every one of them, on a grid of conversations."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from swift_core.cards.pieces import Pieces, to_jinja
from swift_core.cards.templates import read_pieces, read_templates
from swift_core.config.sections import TemplateSection
from swift_core.errors import TemplateError
from swift_core.protocols import Sample
from swift_core.registry import TEMPLATES
from swift_core.templates.chat import ChatTemplate, build_template
from swift_core.testing.tiny import make_tiny_tokenizer

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent / "template_goldens.json").read_text(encoding="utf-8"))
GRID = [(None, 1), ("Be brief.", 1), (None, 3), ("Be brief.", 3)]


def chat(system: Any, *texts: str) -> Any:
    turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


def rounds(system: Any, count: int) -> Any:
    return chat(system, *(text for number in range(count) for text in (f"question {number}", f"answer {number}")))


@cache
def tokenizer() -> Any:
    made = make_tiny_tokenizer()
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return made


@cache
def template(name: str) -> ChatTemplate:
    spec = TEMPLATES.get(name)
    return ChatTemplate(tokenizer(), jinja=spec.jinja, stop_words=spec.stop_words, raw_results=True)


def test_the_table_holds_every_type_and_says_how_it_looks():
    specs = list(read_templates())
    assert len(specs) == 241
    assert all(spec.summary and "\n" not in spec.summary and len(spec.summary) < 110 for spec in specs)
    assert {"qwen3", "glm4_5", "gpt_oss", "deepseek_v3_1", "qwen2_5_vl", "internvl3_5", "kimi_k3", "yi_vl"} <= {spec.name for spec in specs}


@pytest.mark.parametrize("name", GOLDENS)
def test_formats_that_used_to_be_written_by_hand_are_the_same(name):
    """Texts and marks of the Jinja files that the pieces replaced."""
    from transformers.utils.chat_template_utils import render_jinja_template

    cases: Any = [
        (chat(None, "q1", "a1"), False),
        (chat("S", "q1", "a1", "q2", "a2"), False),
        (chat("S", "q1", "a1", "q2"), True),
        (chat(None, "q1"), True),
    ]
    for (messages, prompt), (text, marked) in zip(cases, GOLDENS[name], strict=True):
        texts, spans = render_jinja_template(
            [messages],
            chat_template=TEMPLATES.get(name).jinja,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=True,
            bos_token="<s>",
            eos_token="</s>",
        )
        assert texts[0] == text
        assert [text[start:stop] for start, stop in spans[0]] == marked


@pytest.mark.parametrize("name", [spec.name for spec in read_templates()])
def test_every_format_trains_answers_and_their_end(name):
    made, pieces = template(name), read_pieces()[name]
    rendered = 0
    for system, count in GRID:
        sample = Sample(rounds(system, count))
        possible = (count == 1 or pieces.sep is not None) and (system is None or pieces.system is not None or pieces.system_in_question)
        if not possible:
            with pytest.raises(TemplateError, match="this format"):
                made.mark(sample)
            continue
        rendered += 1
        marked = made.mark(sample)
        texts = [marked.text[start:stop] for start, stop in marked.spans]
        assert len(texts) == count
        ends = tuple(word.replace("{{EOS}}", "</s>") for word in (pieces.suffix.strip(), *pieces.ends, "</s>"))
        for number, text in enumerate(texts):
            assert f"answer {number}" in text
            rest = text.split(f"answer {number}")[1]
            # The last answer always ends with the token that stops generation; earlier ones where the format has such a token.
            assert rest.strip() in ends or (rest == "" and number < count - 1), (name, number, rest)
            assert rest or number < count - 1
        assert "question" not in "".join(texts)
        assert "Be brief" not in "".join(texts)
        assert (system or "question 0") in marked.text
        encoded = made.tokenize([marked])[0]
        assert encoded.trained_tokens
    assert rendered >= 1


@pytest.mark.parametrize("name", [spec.name for spec in read_templates()])
def test_the_prompt_of_every_format_is_what_stands_before_the_answer(name):
    made, pieces = template(name), read_pieces()[name]
    prompt = made.render(rounds(None, 1)[:1], add_generation_prompt=True)
    marked = made.mark(Sample(rounds(None, 1)))
    before = marked.text[: marked.text.index("answer 0")]
    if not pieces.thinks:
        assert before == prompt + pieces.lead
    else:
        plain = marked.text[: marked.text.rindex(pieces.assistant) + len(pieces.assistant)] if pieces.assistant else before
        assert prompt.startswith(plain)


@pytest.mark.parametrize("name", ["qwen3", "glm4_5", "deepseek_v3_1", "hunyuan", "minimax_m3_vl", "gemma4", "kimi_k3"])
def test_thinking_can_be_switched(name):
    made, pieces = template(name), read_pieces()[name]
    ask = rounds(None, 1)[:1]
    off = made.render(ask, add_generation_prompt=True, variables={"enable_thinking": False})
    on = made.render(ask, add_generation_prompt=True, variables={"enable_thinking": True})
    assert off.endswith(str(pieces.think_off))
    assert on.endswith(pieces.assistant + pieces.think_on)
    assert made.render(ask, add_generation_prompt=True) == (on if pieces.think_default else off)


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1", "glm4_5", "minimax_m3_vl", "gemma4", "kimi_k3"])
def test_thoughts_of_earlier_answers(name):
    made, pieces = template(name), read_pieces()[name]
    messages = chat(None, "q", "<think>\nfirst thought\n</think>\n\none", "q", "<think>\nlast thought\n</think>\n\ntwo")
    text = made.render(messages)
    assert "first thought" not in text
    assert "last thought" in text
    assert pieces.think_before + "last thought" + pieces.think_after + "two" in text
    marked = made.mark(Sample(messages))
    assert [marked.text[start:stop].count("thought") >= 1 for start, stop in marked.spans] == [True]
    assert any("removes its thoughts" in note for note in marked.notes)
    kept = made.mark(Sample(messages, chat_template_kwargs={"preserve_thinking": True}))
    assert "first thought" in kept.text
    assert len(kept.spans) == 2
    separate: Any = [messages[0], {"role": "assistant", "content": "one", "reasoning_content": "first thought"}]
    assert made.render(separate) == made.render(messages[:2])


def test_dates_are_those_of_today():
    from datetime import datetime

    assert datetime.now().strftime("%d %b %Y") in template("llama3_2").render(rounds(None, 1))
    assert datetime.now().strftime("%Y-%m-%d") in template("mistral_2501").render(rounds(None, 1))
    assert "DATE" not in template("mistral_2501").render(rounds(None, 1))


def test_questions_are_counted():
    text = template("chatglm2").render(rounds(None, 3))
    assert [f"[Round {number}]" in text for number in (0, 1, 2, 3, 4)] == [False, True, True, True, False]
    assert "[Round 0]" in template("longchat").render(rounds(None, 2))


def test_a_system_message_in_the_first_question():
    assert template("gemma3_text").render(chat("Be brief.", "q")) == "<s><start_of_turn>user\nBe brief.\n\nq<end_of_turn>\n"


def test_pieces_with_quotes_braces_and_other_scripts():
    pieces = Pieces(system='{% "s" %}\n{{SYSTEM}}\\', user="问'{{QUERY}}\"", assistant="答：", sep="\n", suffix="<e>")
    from transformers.utils.chat_template_utils import render_jinja_template

    text = render_jinja_template([chat("{{x}}", "q", "a")], chat_template=to_jinja(pieces))[0][0]
    assert text == '{% "s" %}\n{{x}}\\问\'q"答：a<e>'


def test_a_named_format_is_saved_without_marks_and_keeps_its_switches():
    tokenizer = make_tiny_tokenizer()
    made = build_template(tokenizer, TemplateSection(template="qwen3", enable_thinking=False))
    assert made.encode_prompt(rounds(None, 1)[:1]) == tokenizer.apply_chat_template(
        rounds(None, 1)[:1], add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
