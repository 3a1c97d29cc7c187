"""Contents put into a rendering made before: the same text and marks as Jinja gives, or Jinja."""

from itertools import product

import pytest
from swift_core.errors import TemplateError
from swift_core.registry import TEMPLATES
from swift_core.templates import rendering
from swift_core.templates.rendering import Renderer, without_marks
from swift_core.templates.skeleton import Skeleton, only_writes_contents, stand_ins
from swift_core.testing.tiny import make_tiny_tokenizer

LOOP = "{% for message in messages %}"
PROVEN = {
    "item": LOOP + "{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}",
    "member": LOOP + "{{ message.role }}{{ message.content }}{% endfor %}",
    "get": LOOP + "{{ message.get('content') }}{% endfor %}",
    "trim": LOOP + "[{{ message.content | trim }}]{% endfor %}",
    "strip": LOOP + "[{{ message.content.lstrip() ~ ' ' ~ message.content.rstrip() }}]{% endfor %}",
    "names": "{% if messages[0].role == 'system' %}{% set s = messages[0].content | trim %}{% set rest = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if loop.first %}{{ s + '\n\n' + m.content }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "type": LOOP + "{% if message.content is string %}{{ message.content }}{% else %}parts{% endif %}{% endfor %}",
    "neighbour": LOOP + "{% if loop.previtem and loop.previtem.role == 'user' %}> {% endif %}{{ message['content'] }}{% endfor %}",
    "last": "{{ (messages | last).content }}{{ messages | length }}{{ messages[-1]['content'] }}",
    "choice": LOOP + "{{ message.content if message.role == 'user' else message.content | trim }}{% endfor %}",
    "marks": LOOP + "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}</s>{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}",
    "twice": LOOP + "{{ message.content }}={{ message.content }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
}
UNPROVEN = {
    "truth": LOOP + "{% if message.content %}{{ message.content }}{% endif %}{% endfor %}",
    "inside": LOOP + "{% if '</think>' in message.content %}x{% endif %}{% endfor %}",
    "split": LOOP + "{{ message.content.split('</think>')[-1] }}{% endfor %}",
    "first letter": LOOP + "{{ message.content[0] }}{% endfor %}",
    "filter": LOOP + "{{ message.content | upper }}{% endfor %}",
    "length": LOOP + "{{ message.content | length }}{% endfor %}",
    "equal": LOOP + "{{ 'x' if message.content == 'a' else 'y' }}{% endfor %}",
    "trimmed text": LOOP + "{{ ('a ' + message.content) | trim }}{% endfor %}",
    "trimmed name": LOOP + "{% set t = 'a ' + message.content %}{{ t | trim }}{% endfor %}",
    "namespace": "{% set ns = namespace(x='') %}" + LOOP + "{% set ns.x = message.content %}{% endfor %}{{ ns.x }}",
    "message": LOOP + "{{ message | tojson }}{% endfor %}",
    "all": "{{ messages }}",
    "key": LOOP + "{% for key in message %}{{ message[key] }}{% endfor %}{% endfor %}",
    "items": LOOP + "{% for key, value in message.items() %}{{ value }}{% endfor %}{% endfor %}",
    "list": LOOP + "{% for part in [message.content] %}{{ part | length }}{% endfor %}{% endfor %}",
    "macro": "{% macro write(text) %}{{ text | upper }}{% endmacro %}" + LOOP + "{{ write(message.content) }}{% endfor %}",
    "macro around": "{% macro write() %}{{ messages[0].content }}{% endmacro %}{{ write() | upper }}",
    "block": LOOP + "{% set t %}{{ message.content }}{% endset %}{{ t | upper }}{% endfor %}",
    "filtered": LOOP + "{% filter upper %}{{ message.content }}{% endfilter %}{% endfor %}",
    "later name": LOOP + "{{ t | upper }}{% set t = message.content %}{% endfor %}",
    "neighbour": LOOP + "{{ loop.previtem.content | upper }}{% endfor %}",
    "selected": "{{ messages | map(attribute='content') | join }}",
    "clock": "{{ strftime_now('%s') }}" + LOOP + "{{ message.content }}{% endfor %}",
    "argument": LOOP + "{{ 'abc'.replace('b', message.content) }}{% endfor %}",
    "format": LOOP + "{{ '%s' % message.content }}{% endfor %}",
}
CONTENTS = ["plain", "", "  spaced \n", "\u2003\ue0001\ue001\u2003", "{{ x }}", "<|im_end|>", "Zoë\x00"]
TOKENIZER = make_tiny_tokenizer()


def conversations():
    for one, other in product(CONTENTS, repeat=2):
        yield [{"role": "user", "content": one}, {"role": "assistant", "content": other}]
        yield [{"role": "system", "content": other}, {"role": "user", "content": one}, {"role": "assistant", "content": one}]


@pytest.mark.parametrize("name", UNPROVEN)
def test_contents_that_are_looked_at(name):
    assert not only_writes_contents(UNPROVEN[name])


@pytest.mark.parametrize("name", PROVEN)
def test_contents_that_are_only_written(name):
    assert only_writes_contents(without_marks(PROVEN[name]))
    renderer = Renderer(TOKENIZER, jinja=PROVEN[name])
    for messages in conversations():
        for prompt in (True, False):
            assert renderer.text(messages, None, generation_prompt=prompt) == renderer._run(messages, None, prompt, None, marks=False)[0]
        if renderer.has_marks():
            assert renderer.marked(messages, None) == renderer._run(messages, None, False, None, marks=True)
    assert renderer._skeletons and all(renderer._skeletons.values())


def test_named_formats_render_as_jinja_does():
    proven = 0
    for name in TEMPLATES.names():
        jinja = TEMPLATES.get(name).jinja
        if jinja is None or not only_writes_contents(without_marks(jinja)):
            continue
        renderer = Renderer(TOKENIZER, jinja=jinja)
        for contents in (["a", "b", "c"], [" x ", "", "d\n"]):
            messages = [{"role": role, "content": text} for role, text in zip(("system", "user", "assistant"), contents, strict=True)]
            try:
                expected = renderer._run(messages, None, False, None, marks=True)
            except TemplateError:
                continue
            assert renderer.marked(messages, None) == expected
            proven += 1
    assert proven > 300


def test_other_keys_and_tools_are_left_to_jinja():
    renderer = Renderer(TOKENIZER, jinja=LOOP + "{{ message.content }}{{ message.extra }}{% endfor %}{{ tools }}")
    plain = [{"role": "user", "content": "a", "loss": True, "loss_scale": 2.0}]
    assert renderer.text(plain, None, generation_prompt=False) == "aNone"
    assert renderer.text([{**plain[0], "extra": "!"}], None, generation_prompt=False) == "a!None"
    assert renderer.text(plain, [{"a": 1}], generation_prompt=False) == "a[{'a': 1}]"
    assert renderer.text([{"role": "user", "content": None}], None, generation_prompt=False) == "NoneNone"
    assert len(renderer._skeletons) == 1


def test_variables_have_renderings_of_their_own():
    renderer = Renderer(TOKENIZER, jinja="{{ mood }}{{ shapes }}" + LOOP + "{{ message.content }}{% endfor %}")
    messages = [{"role": "user", "content": "a"}]
    assert [renderer.text(messages, None, generation_prompt=False, variables={"mood": mood}) for mood in "xyx"] == ["xa", "ya", "xa"]
    assert renderer.text(messages, None, generation_prompt=False, variables={"shapes": [1]}) == "[1]a"


def test_refusals_stay_refusals():
    renderer = Renderer(
        TOKENIZER, jinja=LOOP + "{% if message.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{{ message.content }}{% endfor %}"
    )
    for _ in range(2):
        with pytest.raises(TemplateError, match="roles: tool"):
            renderer.text([{"role": "tool", "content": "a"}], None, generation_prompt=False)


def test_what_is_held_has_a_bound(monkeypatch):
    monkeypatch.setattr(rendering, "_HELD", 3)
    renderer = Renderer(TOKENIZER, jinja=PROVEN["item"])
    for count in range(1, 9):
        messages = [{"role": "user", "content": str(number)} for number in range(count)]
        assert renderer.text(messages, None, generation_prompt=False) == "".join(f"user: {number}\n" for number in range(count))
    assert len(renderer._skeletons) <= 3


def test_a_mark_inside_a_content_gives_no_skeleton():
    text = "a".join(stand_ins(2))
    assert Skeleton.of(text, [(0, len(stand_ins(1)[0]))]) is not None
    assert Skeleton.of(text, [(0, 2)]) is None
