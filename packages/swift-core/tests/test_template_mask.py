"""The loss mask over many templates: what is trained is the answers and the token that ends them, nothing else."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swift_core.errors import TemplateError
from swift_core.protocols import Message, Sample
from swift_core.registry import TEMPLATES
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.mask import TurnEnd, complement, label_by_offsets, label_by_prefixes
from swift_core.templates.rendering import without_marks
from swift_core.testing.tiny import make_tiny_tokenizer

GENERATION = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"

# name -> (template, what an answer is rendered to)
FOREIGN: dict[str, Any] = {
    "default system": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nBe nice.<|im_end|>\n' }}{% endif %}"
        + TURN
        + "{% endfor %}"
        + GENERATION,
        lambda text: text + "<|im_end|>",
    ),
    "strips contents": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}" + GENERATION,
        lambda text: text.strip() + "<|im_end|>",
    ),
    "no generation prompt": (
        "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}",
        lambda text: " " + text + "</s>",
    ),
    "other role names, space after": (
        "{% for m in messages %}{{ ('model' if m['role'] == 'assistant' else 'user') + ': ' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ '</s> ' }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'model: ' }}{% endif %}",
        lambda text: text + "</s>",
    ),
    "end only after the last turn": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{% if loop.last and m['role'] == 'assistant' %}{{ '</s>' }}{% else %}{{ '<|im_end|>' }}{% endif %}{% endfor %}" + GENERATION,
        None,
    ),
}


FORMATS = ("chatml", "qwen", "qwen2_5", "phi4", "llama3", "llama2", "mistral", "gemma", "zephyr", "phi3", "deepseek", "deepseek_v2_5")
FORMATS += ("alpaca", "default", "glm4", "internlm2", "minimax")


@cache
def tokenizer() -> Any:
    made = make_tiny_tokenizer()
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return made


@cache
def template(name, marks):
    if name in FOREIGN:
        return ChatTemplate(tokenizer(), jinja=FOREIGN[name][0])
    spec = TEMPLATES.get(name)
    return ChatTemplate(tokenizer(), jinja=spec.jinja if marks else without_marks(spec.jinja), stop_words=spec.stop_words)


def chat(*contents: str, system: str | None = None) -> Any:
    roles = ("user", "assistant")
    turns = [{"role": roles[index % 2], "content": text} for index, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


def trained_texts(made, sample):
    marked = made.mark(sample)
    return [marked.text[start:stop] for start, stop in marked.spans]


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=30).filter(lambda text: "<" not in text)
answers = words.filter(lambda text: text.strip())
conversations = st.lists(st.tuples(words, answers), min_size=1, max_size=4)


@pytest.mark.parametrize("name", [name for name, (_, shape) in FOREIGN.items() if shape])
@settings(deadline=None, max_examples=25)
@given(pairs=conversations)
def test_foreign_templates_train_answers_and_their_end(name, pairs):
    shape = FOREIGN[name][1]
    sample = Sample(chat(*[text for pair in pairs for text in pair]))
    made = template(name, False)
    assert trained_texts(made, sample) == [shape(answer) for _, answer in pairs]
    encoded = made.encode(sample)
    kept = tokenizer().decode([label for label in encoded.labels if label != -100])
    # A token may span header and answer when an answer starts with white space; everything visible is trained.
    assert "".join(kept.split()) == "".join("".join(shape(answer) for _, answer in pairs).split())


@pytest.mark.parametrize("marks", [True, False])
@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=8)
@given(pairs=conversations)
def test_named_formats_train_the_same_with_and_without_marks(name, marks, pairs):
    sample = Sample(chat(*[text for pair in pairs for text in pair], system="Be brief."))
    made = template(name, marks)
    texts = trained_texts(made, sample)
    end = made.stop_words[0]
    lead = " " if name in ("llama2", "mistral", "deepseek") else ""
    assert texts == [lead + answer + end for _, answer in pairs]


# A prompt that ends in a space is left out: one token then holds that space and the first word of the answer.
@pytest.mark.parametrize("name", [*FORMATS, *(name for name in FOREIGN if name != "other role names, space after")])
def test_the_prompt_of_a_generation_is_the_start_of_the_training_sample(name):
    messages = chat("What is the capital of France?", "Paris.", "你好，请问你是谁？", "I am a model.")
    made = template(name, True)
    ids = made.encode(Sample(messages)).input_ids
    for length in (1, 3):
        prompt = made.encode_prompt(messages[:length])
        assert ids[: len(prompt)] == prompt
        assert ids[len(prompt)] == made.encode(Sample(messages)).labels[len(prompt)]


def test_an_end_that_only_the_last_turn_has_does_not_hide_earlier_turns():
    made = template("end only after the last turn", False)
    assert trained_texts(made, Sample(chat("a", "one", "b", "two"))) == ["one<|im_end|>", "two</s>"]
    assert {"<|im_end|>", "</s>"} <= set(made.stop_words)


THINKING = (
    "{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last and '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}" + GENERATION
)


def test_a_turn_that_changes_in_the_history_is_left_out_with_a_reason():
    made = ChatTemplate(tokenizer(), jinja=THINKING)
    marked = made.mark(Sample(chat("a", "<think>x</think>one", "b", "<think>y</think>two")))
    assert [marked.text[start:stop] for start, stop in marked.spans] == ["<think>y</think>two<|im_end|>"]
    assert any("differently once later messages follow" in note for note in marked.notes)


def test_thinking_that_the_template_drops_from_the_last_answer_is_reported():
    jinja = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'U:' + m['content'] }}{% else %}"
        "{{ '<|im_start|>' + m['content'].split('</think>')[-1] + '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|><think>\n' }}{% endif %}"
    )
    made = ChatTemplate(tokenizer(), jinja=jinja)
    marked = made.mark(Sample(chat("a", "<think>\nx</think>one")))
    assert [marked.text[start:stop] for start, stop in marked.spans] == ["one</s>"]
    assert any("changes or drops" in note for note in marked.notes)


def test_an_end_is_added_where_the_template_writes_none():
    # As GLM does: the next turn's header is what ends an answer.
    jinja = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% endfor %}" + GENERATION
    made = ChatTemplate(tokenizer(), jinja=jinja)
    assert trained_texts(made, Sample(chat("a", "one"))) == ["one<|im_start|>"]
    assert made.encode(Sample(chat("a", "one"))).labels[-1] == tokenizer().convert_tokens_to_ids("<|im_start|>")
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    assert trained_texts(ChatTemplate(tokenizer(), jinja=plain), Sample(chat("a", "one")))[0].endswith("</s>")


def test_marks_that_hold_the_content_only_are_widened_to_the_end_of_the_turn():
    jinja = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        + GENERATION
    )
    made = ChatTemplate(tokenizer(), jinja=jinja)
    assert trained_texts(made, Sample(chat("a", "one", "b", "two"))) == ["one<|im_end|>", "two<|im_end|>"]


def test_a_conversation_that_starts_with_the_assistant():
    assert trained_texts(template("default system", False), Sample([Message(role="assistant", content="Hello!")])) == ["Hello!<|im_end|>"]


def test_an_answer_that_cannot_be_found_is_an_error_not_a_guess():
    jinja = "{% for m in messages %}{{ m['role'] ~ m['content'] | length ~ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'zzz' }}{% endif %}"
    made = ChatTemplate(tokenizer(), jinja="{{ 'n' ~ messages | length }}" + jinja)
    with pytest.raises(TemplateError, match=r"^f\.jsonl:3: message 2"):
        made.mark(Sample(chat("a", "one"), origin="f.jsonl:3"))


def test_border_tokens():
    text = "ab \n\ncd"
    offsets = [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert label_by_offsets([1, 2, 3, 4], offsets, text, [(3, 7)]) == [-100, -100, 3, 4]  # "\n" alone of token 2 is inside
    assert label_by_offsets([1, 2, 3, 4], offsets, text, [(1, 3)]) == [1, -100, -100, -100]  # "b" of token 1 is inside
    assert label_by_offsets([1, 2], [(0, 1), (0, 1)], "你", [(0, 1)]) == [1, 2]  # two byte tokens of one character
    assert label_by_offsets([1, 2], [(0, 1), (1, 2)], "ab", []) == [-100, -100]


def test_prefixes_agree_with_offsets():
    text = "system says hi. hello there</s>\nbye"
    fast = tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [(15, 31)]
    by_prefix = label_by_prefixes(fast["input_ids"], lambda part: tokenizer()(part, add_special_tokens=False)["input_ids"], text, spans)
    assert by_prefix == label_by_offsets(fast["input_ids"], fast["offset_mapping"], text, spans)
    assert tokenizer().decode([label for label in by_prefix if label != -100]) == " hello there</s>"


def test_turn_end():
    end = TurnEnd(("</s>", "<|im_end|>"))
    assert end.close("ab\n</s>\n", 2) == 7
    assert end.close("ab cd", 2) == 2
    assert end.trim("ab</s> \n") == 2
    assert end.trim("ab ") == 3


@given(st.lists(st.integers(0, 50), max_size=6, unique=True))
def test_complement_covers_what_the_spans_leave(borders):
    borders = sorted(borders)[: len(borders) // 2 * 2]
    spans = list(zip(borders[::2], borders[1::2], strict=True))
    covered = {at for start, stop in spans for at in range(start, stop)}
    rest = {at for start, stop in complement(spans, 60) for at in range(start, stop)}
    assert covered | rest == set(range(60))
    assert not covered & rest
