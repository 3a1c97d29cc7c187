"""A prompt format as a handful of texts, and the Jinja chat template they amount to."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

_SLOT = re.compile(r"(\{\{(?:SYSTEM|QUERY|BOS|EOS|ROUND0|ROUND1|DATE:[^}]*)\}\})")
_TOKEN = re.compile(r"\s*(<[^<>\s]+>|\[[^\[\]\s]+\])")
_FIXED = {"{{BOS}}": "bos_token", "{{EOS}}": "eos_token", "{{ROUND0}}": "(seen.questions - 1)", "{{ROUND1}}": "seen.questions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The texts of a prompt format.

    A text may hold `{{SYSTEM}}`, `{{QUERY}}`, `{{BOS}}`, `{{EOS}}`, `{{ROUND0}}` or `{{ROUND1}}` (number of the question, from 0
    or 1) and `{{DATE:%d %b %Y}}`.

    Attributes:
        prefix: what a conversation without system message starts with.
        system: what stands there instead when there is one; None where the format has no place for it.
        system_in_question: the system message goes into the first question, with a blank line after it.
        user: a question.
        assistant: what asks for an answer.
        lead: what stands between `assistant` and the text of an answer.
        sep: what follows an answer before the next turn; None for formats of a single question.
        suffix: what follows the last answer.
        default_system: system message of conversations without one.
        stop_words: texts that end an answer besides `suffix`.
        auto_bos: whether the bos token comes first where the tokenizer puts one before plain text.
        agent: agent format of the models that use this prompt format.
        thinks: whether answers open with thoughts.
        think_on: what the answer is opened with to make the model think.
        think_off: what the answer is opened with to keep it from thinking; None where it always thinks.
        think_past: what stands for the thoughts of earlier answers.
        think_default: whether the model thinks when nobody says.
        preserve_thinking: whether the thoughts of earlier answers stay when nobody says.
        think_before, think_after: what stands around thoughts, which the data write between `<think>` and `</think>`.
        think_fills: which answers without thoughts open with `think_off`: those after the last question (`always`), the last
            message (`last`), or none unless somebody says so (`never`).
        think_with_calls: whether an answer with calls opens with thoughts, or what stands for them, as others do.
        summary: one line for people.
    """

    prefix: str = ""
    system: str | None = None
    system_in_question: bool = False
    user: str = "{{QUERY}}"
    assistant: str = ""
    lead: str = ""
    sep: str | None = ""
    suffix: str = "{{EOS}}"
    default_system: str | None = None
    stop_words: tuple[str, ...] = ()
    auto_bos: bool = False
    agent: str | None = None
    thinks: bool = False
    think_on: str = ""
    think_off: str | None = None
    think_past: str = ""
    think_default: bool = True
    preserve_thinking: bool = False
    think_before: str = "<think>\n"
    think_after: str = "\n</think>\n\n"
    think_fills: Literal["always", "last", "never"] = "always"
    think_with_calls: bool = False
    summary: str = ""

    @property
    def ends(self) -> tuple[str, ...]:
        """Return the texts at which an answer is over, the eos token left out."""
        found = (self.suffix.strip(), _split_end(self)[0].strip(), *self.stop_words)
        return tuple(dict.fromkeys(word for word in found if word and "{{" not in word))


def to_jinja(pieces: Pieces) -> str:
    """Return the chat template of a prompt format, with `{% generation %}` around what the assistant writes.

    Messages have the roles system, user, assistant and tool; the text of a `tool` message stands as it is, so it brings its own
    frame, and with a true `continued` the answer goes on right after it. An assistant message with `end` ends with that text; it
    holds calls of tools.
    """
    return "\n".join([*_preparation(pieces), *_opening(pieces), *_turns(pieces), *_generation_prompt(pieces)]) + "\n"


def _preparation(pieces: Pieces) -> list[str]:
    lines = ["{%- set seen = namespace(questions=0, last=-1) %}"]
    if pieces.thinks:
        fills = _flag(pieces.think_fills != "never")
        lines += [
            "{%- for message in messages %}",
            "    {%- if message['role'] == 'user' and not message['tool_results'] %}{%- set seen.last = loop.index0 %}{%- endif %}",
            "{%- endfor %}",
            f"{{%- set thinks = enable_thinking if enable_thinking is defined else {_flag(pieces.think_default)} %}}",
            f"{{%- set keeps = preserve_thinking if preserve_thinking is defined else {_flag(pieces.preserve_thinking)} %}}",
            f"{{%- set fills = add_non_thinking_prefix if add_non_thinking_prefix is defined else {fills} %}}",
        ]
    return lines


def _opening(pieces: Pieces) -> list[str]:
    """Return the lines that write the prefix or the system message."""
    system, prefix = pieces.system, pieces.prefix
    default = pieces.default_system
    without = _output(system, SYSTEM=_expression(default)) if system is not None and default is not None else _output(prefix)
    if pieces.system_in_question:
        return [without]
    given = (
        _output(system, SYSTEM="messages[0]['content']") if system is not None else _refuse("this format has no place for a system message")
    )
    return ["{%- if messages and messages[0]['role'] == 'system' %}", given, "{%- else %}", without, "{%- endif %}"]


def _turns(pieces: Pieces) -> list[str]:
    block = pieces.system.removeprefix(pieces.prefix) if pieces.system else ""
    # A system block that ends as a turn does can stand anywhere.
    ends = [end for end in (pieces.sep, pieces.user.rpartition("{{QUERY}}")[2]) if end]
    inner = (
        _output(block, SYSTEM="message['content']")
        if any(block.endswith(end) for end in ends)
        else _refuse("a system message can only be the first one")
    )
    question = "message['content']"
    if pieces.system_in_question:
        question = "(messages[0]['content'] + '\\n\\n' if seen.questions == 1 and messages[0]['role'] == 'system' else '') + " + question
    single = ["{%- if seen.questions > 1 %}", _refuse("this format holds one question"), "{%- endif %}"] if pieces.sep is None else []
    return [
        "{%- for message in messages %}",
        "{%- if message['role'] == 'system' %}",
        "{%- if not loop.first %}",
        inner,
        "{%- endif %}",
        "{%- elif message['role'] == 'user' %}",
        "{%- set seen.questions = seen.questions + 1 %}",
        *single,
        _output(pieces.user, QUERY=question),
        "{%- elif message['role'] == 'tool' %}",
        "{{- message['content'] }}",
        "{%- elif message['role'] == 'assistant' %}",
        *_answer(pieces),
        "{%- else %}",
        "{{- raise_exception('this format has no place for the role ' + message['role']) }}",
        "{%- endif %}",
        "{%- endfor %}",
    ]


def _answer(pieces: Pieces) -> list[str]:
    end, rest = _split_end(pieces)
    bare = pieces.suffix.rstrip()
    return [
        "{%- if not (loop.previtem and loop.previtem['continued']) %}",
        _output(pieces.assistant),
        "{%- endif %}",
        *_answer_text(pieces),
        "{%- generation %}",
        _output(pieces.lead),
        "{{- answer }}",
        "{%- if message['end'] %}",
        "{{- message['end'] }}",
        "{%- elif loop.last %}",
        _output(bare),
        "{%- else %}",
        _output(end),
        "{%- endif %}",
        "{%- endgeneration %}",
        "{%- if message['end'] %}",
        "{%- elif loop.last %}",
        _output(pieces.suffix[len(bare) :]),
        "{%- else %}",
        _output(rest),
        "{%- endif %}",
    ]


def _answer_text(pieces: Pieces) -> list[str]:
    """Return the lines that set `answer`: the content, with the thoughts that belong there."""
    if not pieces.thinks:
        return ["{%- set answer = message['content'] %}"]
    before, after, past = _literal(pieces.think_before), _literal(pieces.think_after), _literal(pieces.think_past)
    off = pieces.think_off
    # What the format itself writes around thoughts may stand in the data already.
    own = "" if pieces.think_after.strip() == "</think>" else f" and {_literal(pieces.think_after.strip())} not in answer"
    last = " and loop.last" if pieces.think_fills == "last" else ""
    calls = "true" if pieces.think_with_calls else "not message['end']"
    fill = [f"{{%- elif fills{last} and {calls}{own} %}}", f"{{%- set answer = {_literal(off)} + answer %}}"] if off is not None else []
    return [
        "{%- set answer = message['content'] %}",
        "{%- set thought = '' %}",
        "{%- if message['reasoning_content'] %}",
        "{%- set thought = message['reasoning_content'] %}",
        "{%- elif '</think>' in answer %}",
        "{%- set thought = answer.split('</think>')[0].split('<think>')[-1] %}",
        "{%- set answer = answer.split('</think>')[-1].lstrip('\\n') %}",
        "{%- endif %}",
        f"{{%- if {calls}{own} and loop.index0 < seen.last and not keeps %}}",
        f"{{%- set answer = {past} + answer %}}",
        "{%- elif thought.strip() %}",
        f"{{%- set answer = {before} + thought.strip('\\n') + {after} + answer %}}",
        *fill,
        "{%- endif %}",
    ]


def _generation_prompt(pieces: Pieces) -> list[str]:
    lines = ["{%- if add_generation_prompt and not (messages and messages[-1]['continued']) %}", _output(pieces.assistant)]
    if pieces.thinks and pieces.think_off is not None:
        lines += ["{%- if thinks %}", _output(pieces.think_on), "{%- else %}", _output(pieces.think_off), "{%- endif %}"]
    elif pieces.thinks:
        lines += [_output(pieces.think_on)]
    return [*lines, "{%- endif %}"]


def _split_end(pieces: Pieces) -> tuple[str, str]:
    """Return the part of `sep` that the model must learn to write, and the rest of it.

    That part is the end of the last answer where `sep` opens with it, or else the token that `sep` opens with, unless that token
    opens the next question.
    """
    sep, end = pieces.sep or "", pieces.suffix.rstrip()
    if end and sep.startswith(end):
        return end, sep[len(end) :]
    token = _TOKEN.match(sep)
    if token and token.group(1) not in pieces.prefix:
        return token.group(), sep[token.end() :]
    return "", sep


def _output(text: str, **slots: str) -> str:
    """Return Jinja that writes a text; `slots` are the expressions of its placeholders."""
    parts: list[str] = []
    for part in _SLOT.split(text):
        name = part.strip("{}")
        if part in _FIXED:
            parts.append(f"{{{{- {_FIXED[part]} }}}}")
        elif not _SLOT.fullmatch(part):
            parts += [f"{{{{- {_literal(part)} }}}}"] if part else []
        elif name.startswith("DATE:"):
            parts.append(f"{{{{- strftime_now({_literal(name.removeprefix('DATE:'))}) }}}}")
        elif name in slots:
            inner = slots[name]
            parts.append(f"{{{{- {inner} }}}}")
    return "".join(parts)


def _expression(text: str) -> str:
    """Return a Jinja expression for a text in which only dates are filled in."""
    parts = [
        f"strftime_now({_literal(part[7:-2])})" if part.startswith("{{DATE:") else _literal(part) for part in _SLOT.split(text) if part
    ]
    return " + ".join(parts) or _literal("")


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _refuse(reason: str) -> str:
    return f"{{{{- raise_exception({_literal(reason)}) }}}}"
