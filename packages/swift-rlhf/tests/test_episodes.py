"""Episodes of one and several turns, played with a scripted engine and a real template."""

from __future__ import annotations

import asyncio
import json
import math
import threading

import pytest
from swift_core.errors import ConfigError, TrainingError
from swift_core.templates.agents.base import load_agent
from swift_core.templates.chat import ChatTemplate
from swift_core.testing.tiny import make_tiny_tokenizer
from swift_rlhf.rollout.continuation import TemplatePrompter
from swift_rlhf.rollout.episodes import Episode, Generation, TokenRow
from swift_rlhf.rollout.play import Limits, play
from swift_rlhf.rollout.schedulers import Scheduler, SingleTurn, ToolCalling
from swift_rlhf.rollout.tools import ToolBox


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


async def echo(text: str) -> str:
    """Say it again.

    Args:
        text: what to say.
    """
    await asyncio.sleep(0)
    return text


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(make_tiny_tokenizer(), agent=load_agent("hermes"))


def call(name: str, **arguments) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


class Script:
    """An engine that says what the test wrote, and remembers what it was asked."""

    def __init__(self, template: ChatTemplate, *texts: str) -> None:
        self.template, self.texts, self.asked = template, list(texts), []

    async def __call__(self, requests):
        self.asked.append(requests)
        answers = []
        for request in requests:
            text = self.texts.pop(0)
            ids = self.template.tokenizer.encode(text, add_special_tokens=False)
            cut = len(ids) + 1 > request.max_tokens
            ids = ids[: request.max_tokens] if cut else [*ids, self.template.stop_token_ids[0]]
            answers.append(Generation(ids, text, "length" if cut else "stop", [-0.5] * len(ids), version=len(self.asked)))
        return answers


def played(template, script, scheduler, *episodes: Episode, history="append", **limits) -> tuple[Episode, ...]:
    settings = {"max_turns": 4, "max_completion_length": 4000} | limits
    asyncio.run(play(episodes, script, scheduler, TemplatePrompter(template), limits=Limits(**settings), history=history))
    return episodes


def question(text: str = "2+3?") -> Episode:
    return Episode([{"role": "user", "content": text}], origin="rows.jsonl:1")


def test_one_turn(template) -> None:
    (episode,) = played(template, Script(template, "five"), SingleTurn(), question())
    (row,) = episode.rows
    assert row.prompt_ids == template.encode_prompt([{"role": "user", "content": "2+3?"}])
    assert template.tokenizer.decode(row.completion_ids[:-1]) == "five"
    assert row.mask == [1] * len(row.completion_ids)
    assert (episode.turns, episode.finish_reason, episode.messages[-1]["content"]) == (1, "stop", "five")


def test_tools_are_called_and_their_results_shown_but_not_trained(template) -> None:
    script = Script(template, "Let me see.\n" + call("add", a=2, b=3), "It is 5.")
    (episode,) = played(template, script, ToolCalling(ToolBox([add, echo]), load_agent("hermes")), question())
    assert [message["role"] for message in episode.messages] == ["user", "assistant", "tool", "assistant"]
    assert episode.messages[2]["content"] == "5"
    assert episode.messages[1]["content"] == "Let me see."
    assert episode.info == {"tool_calls": 1, "tool_failures": 0}
    (row,) = episode.rows
    assert len(row.completion_ids) == len(row.mask) == len(row.logprobs) == len(row.versions)
    text = template.tokenizer.decode([token for token, kept in zip(row.completion_ids, row.mask, strict=True) if kept])
    assert "Let me see." in text
    assert "It is 5." in text
    assert "tool_response" not in text
    assert all(math.isnan(value) != bool(kept) for value, kept in zip(row.logprobs, row.mask, strict=True))
    assert set(row.versions) == {1, -1, 2}
    # What the engine was sent is what is trained, token by token.
    assert script.asked[1][0].prompt_ids == row.ids[: len(script.asked[1][0].prompt_ids)]


def test_the_tokens_of_a_played_conversation_are_those_of_its_text(template) -> None:
    script = Script(template, call("add", a=2, b=3), "It is 5.")
    (episode,) = played(template, script, ToolCalling(ToolBox([add]), load_agent("hermes")), question())
    text = template.tokenizer.decode(episode.rows[0].ids)
    assert text.rstrip("\n") == template.render(episode.messages, episode.tools).rstrip("\n")


def test_written_anew_every_turn_is_a_row_of_its_own(template) -> None:
    script = Script(template, call("add", a=2, b=3), "It is 5.")
    scheduler = ToolCalling(ToolBox([add]), load_agent("hermes"))
    (episode,) = played(template, script, scheduler, question(), history="rebuild")
    assert len(episode.rows) == 2
    assert all(set(row.mask) == {1} for row in episode.rows)
    assert episode.rows[1].prompt_ids == template.encode_prompt(episode.messages[:3], episode.tools)


def test_episodes_end_one_by_one_and_run_together(template) -> None:
    script = Script(
        template, call("echo", text="x"), "done", call("echo", text="y"), call("echo", text="z"), "no more", call("add", a=1, b=1)
    )
    episodes = played(
        template, script, ToolCalling(ToolBox([echo, add]), load_agent("hermes")), *(question() for _ in range(3)), max_turns=3
    )
    assert [len(round) for round in script.asked] == [3, 2, 1]
    assert [episode.turns for episode in episodes] == [3, 1, 2]
    assert [episode.finish_reason for episode in episodes] == ["max_turns", "stop", "stop"]


def test_lengths_bound_the_whole_episode_or_each_turn(template) -> None:
    scheduler = ToolCalling(ToolBox([echo]), load_agent("hermes"))
    text = call("echo", text="x")
    size = len(template.tokenizer.encode(text, add_special_tokens=False)) + 1
    (episode,) = played(template, Script(template, text, text), scheduler, question(), max_completion_length=size + 1)
    assert (episode.turns, episode.finish_reason) == (1, "length")
    (episode,) = played(template, Script(template, text, "done"), scheduler, question(), max_completion_length=size, scope="per_turn")
    assert (episode.turns, episode.finish_reason) == (2, "stop")
    (episode,) = played(template, Script(template, text), scheduler, question(), max_completion_length=size - 3)
    assert episode.finish_reason == "length"
    assert len(episode.rows[0].completion_ids) == size - 3
    with pytest.raises(ConfigError, match="max_turns"):
        Limits(max_turns=0)


def test_failures_of_tools_are_told_to_the_model() -> None:
    release = threading.Event()

    def slow() -> str:
        """Take long."""
        release.wait(20)
        return ""

    box = ToolBox([add, slow], timeout=0.5)
    outcomes = asyncio.run(
        box.run([("add", {"a": 1}), ("sub", {}), ("add", "1, 2"), ("slow", {}), ("add", {"a": "x", "b": 1}), ("add", {"a": 2, "b": 3})])
    )
    release.set()
    assert [outcome.failed for outcome in outcomes] == [True] * 5 + [False]
    assert "missing a required" in outcomes[0].text
    assert "no tool 'sub'" in outcomes[1].text
    assert "no JSON object" in outcomes[2].text
    assert "longer than 0.5 s" in outcomes[3].text
    assert outcomes[5].text == "5"
    assert len(asyncio.run(ToolBox([echo], max_characters=40).run([("echo", {"text": "x" * 500})]))[0].text) < 100


def test_tools_say_what_they_take() -> None:
    def bare(a):
        return a

    with pytest.raises(ConfigError, match="bare"):
        ToolBox([bare])
    with pytest.raises(ConfigError, match="twice"):
        ToolBox([add, add])
    assert ToolBox([add]).schemas()[0]["function"]["parameters"]["required"] == ["a", "b"]
    assert ToolBox([add, echo]).schemas(["echo"])[0]["function"]["name"] == "echo"


class Silent(SingleTurn):
    """Goes on without a word."""

    closed = 0

    async def stop(self, episode, answer) -> bool:
        return False

    async def finish(self, episode) -> None:
        self.closed += 1


def test_what_cannot_go_on_is_an_error_and_everything_is_closed(template) -> None:
    scheduler = Silent()
    assert isinstance(scheduler, Scheduler)
    with pytest.raises(TrainingError, match=r"without showing anything at rows\.jsonl:1"):
        played(template, Script(template, "a", "b"), scheduler, question(), question())
    assert scheduler.closed == 2

    async def short(requests):
        return []

    with pytest.raises(TrainingError, match="0 answers to 1 prompts"):
        played(template, short, scheduler, question())
    assert scheduler.closed == 3
    with pytest.raises(TrainingError, match="1 log-probabilities for 2 tokens"):
        TokenRow([1]).add_answer(Generation([1, 2], "a", logprobs=[-1.0]))
