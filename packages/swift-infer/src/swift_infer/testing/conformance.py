"""One set of checks for every engine: what it says it can do is what it does.

A test calls `check(name, engine)` for each name of `CHECKS`; a program that looks at an engine calls `report(engine)`. Checks need no
particular model: they compare answers of the engine with one another.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

from swift_core.errors import EngineError, RequestError, SwiftError
from swift_core.protocols import AdapterEngine, Engine, InferRequest, RequestConfig, StructuredOutput, WeightEngine

Outcome = Literal["passed", "not supported"]
GREEDY = RequestConfig(max_tokens=12, temperature=0)
QUESTIONS = ("Who are you?", "What is the capital of France? Tell me in one short sentence, please.", "a", "Name three colours.")


class ConformanceError(AssertionError):
    """Raised when an engine does something else than the protocol says."""


def expect(holds: bool, what: str) -> None:
    """Raise unless something holds.

    Raises:
        ConformanceError: with what should hold.
    """
    if not holds:
        raise ConformanceError(what)


def ask(text: str, **more: Any) -> InferRequest:
    """Return a request with one question."""
    return InferRequest([{"role": "user", "content": text}], **more)


def texts(engine: Engine, requests: Sequence[InferRequest], config: RequestConfig) -> list[list[str]]:
    """Return the texts of all answers."""
    return [[choice.message.content or "" for choice in response.choices] for response in engine.infer(requests, config)]


def generates(engine: Engine) -> None:
    """Answers come in order, with counts and a reason, and are the same every time at temperature 0."""
    requests = [ask(text) for text in QUESTIONS]
    first = engine.infer(requests, GREEDY)
    expect(len(first) == len(requests), "one response for each request")
    for response in first:
        expect(len(response.choices) == 1 and response.choices[0].index == 0, "one choice, number 0")
        expect(response.choices[0].finish_reason in ("stop", "length"), "a reason for the end")
        expect(0 < response.usage.completion_tokens <= GREEDY.max_tokens, "as many tokens as were allowed, or fewer")
        expect(response.usage.prompt_tokens > 0, "prompts have tokens")
    expect(texts(engine, requests[::-1], GREEDY) == [[c.message.content for c in r.choices] for r in first[::-1]], "order is kept")


def limits_length(engine: Engine) -> None:
    """`max_tokens` ends an answer with the reason `length`."""
    response = engine.infer([ask(QUESTIONS[0])], replace(GREEDY, max_tokens=2, ignore_eos=True))[0]
    expect(response.usage.completion_tokens == 2 and response.choices[0].finish_reason == "length", "two tokens, then length")


def streams(engine: Engine) -> None:
    """The pieces of a stream are the answer; reason and usage come with the last one."""
    whole = engine.infer([ask(QUESTIONS[1])], GREEDY)[0]
    pieces = list(engine.stream(ask(QUESTIONS[1]), GREEDY))
    expect("".join(piece.text for piece in pieces) == whole.choices[0].message.content, "the pieces are the answer")
    expect(pieces[-1].finish_reason == whole.choices[0].finish_reason and pieces[-1].usage == whole.usage, "the last piece tells the end")
    expect(all(piece.usage is None for piece in pieces[:-1]), "usage comes last")


def runs_async(engine: Engine) -> None:
    """Async answers run side by side and equal the others; a stream that is left does not disturb them."""
    expected = [answers[0] for answers in texts(engine, [ask(text) for text in QUESTIONS], GREEDY)]

    async def streamed(text: str) -> str:
        return "".join([piece.text async for piece in engine.astream(ask(text), GREEDY)])

    async def left() -> None:
        source: Any = engine.astream(ask(QUESTIONS[0]), replace(GREEDY, max_tokens=64, ignore_eos=True))
        async with aclosing(source) as pieces:
            async for _ in pieces:
                return

    async def main() -> list[Any]:
        whole = [engine.ainfer(ask(text), GREEDY) for text in QUESTIONS]
        return await asyncio.gather(*(streamed(text) for text in QUESTIONS), left(), *whole)

    found = asyncio.run(main())
    expect(found[: len(QUESTIONS)] == expected, "async streams equal answers")
    expect([one.choices[0].message.content for one in found[len(QUESTIONS) + 1 :]] == expected, "async answers equal answers")


def gives_several(engine: Engine) -> None:
    """`n` gives so many answers; with a seed they are the same again, and differ from one another."""
    config = RequestConfig(max_tokens=12, temperature=1.5, seed=11, n=3)
    first, again = (texts(engine, [ask(QUESTIONS[3])], config)[0] for _ in range(2))
    expect(len(first) == 3 and len(set(first)) > 1, "three answers that differ")
    expect(first == again, "the seed repeats them")


def stops(engine: Engine) -> None:
    """A stop text ends the answer and is no part of it."""
    free = texts(engine, [ask(QUESTIONS[1])], GREEDY)[0][0]
    middle = free[len(free) // 2 : len(free) // 2 + 2]
    found = engine.infer([ask(QUESTIONS[1])], replace(GREEDY, stop=(middle,)))[0].choices[0]
    expect(found.finish_reason == "stop" and found.message.content == free[: free.find(middle)], "the text before the stop text")


def refuses(engine: Engine) -> None:
    """What cannot be answered is refused with an error for the caller."""
    for config in (replace(GREEDY, max_tokens=0), replace(GREEDY, n=0)):
        try:
            engine.infer([ask("a")], config)
        except SwiftError:
            continue
        raise ConformanceError(f"{config} is refused")
    length = getattr(engine, "context_length", None)
    if length is not None:
        try:
            engine.infer([ask("word " * (length + 8))], GREEDY)
        except RequestError as error:
            expect(getattr(engine, "name", "") == "client" or error.code == "context_length_exceeded", "the error says what it is")
            return
        raise ConformanceError("a prompt over the context is refused")


def takes_token_ids(engine: Any) -> None:
    """Token ids go in as they are, and come out as they were sampled."""
    told = engine.infer([ask(QUESTIONS[0])], GREEDY)[0]
    found = engine.infer([InferRequest(prompt_ids=told.prompt_ids)], GREEDY)[0]
    expect(len(told.prompt_ids) == told.usage.prompt_tokens, "the prompt's ids are told")
    expect(found.choices[0].token_ids == told.choices[0].token_ids, "the same ids give the same answer")
    expect(len(found.choices[0].token_ids) == found.usage.completion_tokens, "one id for each token")
    ending = found.choices[0].token_ids[3]
    stopped = engine.infer([InferRequest(prompt_ids=told.prompt_ids)], replace(GREEDY, stop_token_ids=(ending,)))[0].choices[0]
    place = found.choices[0].token_ids.index(ending)
    expect(stopped.token_ids == found.choices[0].token_ids[: place + 1] and stopped.finish_reason == "stop", "a stop token ends it")


def tells_logprobs(engine: Engine) -> None:
    """Log-probabilities belong to the tokens; at temperature 0 each token is the likeliest of its place."""
    response = engine.infer([ask(QUESTIONS[0])], replace(GREEDY, logprobs=2))[0]
    found = response.choices[0].logprobs or []
    expect(len(found) == response.usage.completion_tokens, "one for each token")
    for one in found:
        expect(one.logprob <= 1e-4 and len(one.top) == 2, "the token's own, and two more")
        expect(math.isclose(one.logprob, one.top[0][1], abs_tol=1e-3), "the likeliest token was taken")
    plain = engine.infer([ask(QUESTIONS[0])], GREEDY)[0].choices[0]
    expect(plain.logprobs is None and plain.message.content == response.choices[0].message.content, "asking changes nothing")


def tells_prompt_logprobs(engine: Engine) -> None:
    """The prompt's log-probabilities are those of answering the same tokens."""
    response = engine.infer([ask(QUESTIONS[0])], replace(GREEDY, logprobs=0, prompt_logprobs=True))[0]
    found = response.prompt_logprobs or []
    expect([one.token_id for one in found] == response.prompt_ids[1:], "one for each token but the first")
    longer = response.prompt_ids + response.choices[0].token_ids
    again = engine.infer([InferRequest(prompt_ids=longer)], replace(GREEDY, max_tokens=1, prompt_logprobs=True))[0].prompt_logprobs or []
    answer = response.choices[0].logprobs or []
    close = all(abs(one.logprob - two.logprob) < 0.1 for one, two in zip(again[-len(answer) :], answer, strict=True))
    expect(close, "an answer is as likely as a part of the prompt")


def keeps_to_a_form(engine: Engine) -> None:
    """A choice, a pattern and a schema are kept to."""
    wide = replace(GREEDY, max_tokens=48)
    form = replace(wide, structured=StructuredOutput(choice=("red", "green")))
    expect(texts(engine, [ask(QUESTIONS[3])], form)[0][0] in ("red", "green"), "one of the choices")
    digits = texts(engine, [ask(QUESTIONS[3])], replace(wide, structured=StructuredOutput(regex=r"[0-9]{3}-[0-9]{2}")))[0][0]
    expect(len(digits) == 6 and digits.replace("-", "").isdigit(), "the pattern")
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    value = json.loads(texts(engine, [ask(QUESTIONS[3])], replace(wide, structured=StructuredOutput(json_schema=schema)))[0][0])
    expect(value in ({"a": 1}, {"a": 2}), "the schema")


def aborts(engine: Engine) -> None:
    """`abort` ends the requests of a name with what they have."""
    started = threading.Event()
    reasons: list[str | None] = []

    def read() -> None:
        for piece in engine.stream(ask(QUESTIONS[0], request_id="mine"), replace(GREEDY, max_tokens=400, ignore_eos=True)):
            started.set()
            reasons.append(piece.finish_reason)

    thread = threading.Thread(target=read)
    thread.start()
    expect(started.wait(120), "the answer begins")
    expect(engine.abort("other") == 0, "requests of another name go on")
    engine.abort("mine")
    thread.join(120)
    expect(not thread.is_alive() and reasons[-1] in ("abort", "length"), "the answer ends")


def changes_adapters(engine: Any) -> None:
    """Requests get the adapter that they name, side by side; one that is not there is refused."""
    expect(isinstance(engine, AdapterEngine), "it is an AdapterEngine")
    names = [None, *engine.adapters]
    together = texts(engine, [ask(QUESTIONS[0], adapter=name) for name in names], GREEDY)
    alone = [texts(engine, [ask(QUESTIONS[0], adapter=name)], GREEDY)[0] for name in names]
    expect(together == alone, "rows of a batch do not mix")
    expect(len({answers[0] for answers in together}) == len(names), "adapters change the answer")
    try:
        engine.infer([ask("a", adapter="no such adapter")], GREEDY)
    except RequestError:
        return
    raise ConformanceError("an adapter that is not there is refused")


def pauses_and_sleeps(engine: Any) -> None:
    """After sleeping and waking, answers are what they were; the version is a number."""
    weights: Any = engine  # so that the check below does not take the other methods away
    expect(isinstance(weights, WeightEngine) and isinstance(weights.version, int), "it is a WeightEngine")
    before = texts(engine, [ask(QUESTIONS[1])], GREEDY)
    engine.pause("wait")
    engine.resume()
    expect(texts(engine, [ask(QUESTIONS[1])], GREEDY) == before, "pausing changes nothing")
    engine.sleep(1)
    engine.wake()
    expect(texts(engine, [ask(QUESTIONS[1])], GREEDY) == before, "sleeping changes nothing")


CHECKS: dict[str, tuple[str | None, Callable[[Any], None]]] = {
    "generate": (None, generates),
    "length": (None, limits_length),
    "stream": (None, streams),
    "async": (None, runs_async),
    "n and seed": (None, gives_several),
    "stop": (None, stops),
    "refusals": (None, refuses),
    "token ids": ("token_ids", takes_token_ids),
    "logprobs": ("logprobs", tells_logprobs),
    "prompt logprobs": ("prompt_logprobs", tells_prompt_logprobs),
    "structured output": ("structured", keeps_to_a_form),
    "abort": ("abort", aborts),
    "adapters": ("adapters", changes_adapters),
    "pause and sleep": ("sleep", pauses_and_sleeps),
}
"""Name of a check -> the capability that it needs, and what it does with an engine."""


def check(name: str, engine: Engine) -> Outcome:
    """Run one check.

    Raises:
        ConformanceError: when the engine does something else than the protocol says.
    """
    needs, run = CHECKS[name]
    if needs is not None and not getattr(engine.capabilities, needs):
        return "not supported"
    if name == "adapters" and not getattr(engine, "adapters", None):
        return "not supported"
    run(engine)
    return "passed"


def report(engine: Engine) -> dict[str, str]:
    """Return for every check whether it passed, is not supported, or what went wrong."""
    found: dict[str, str] = {}
    for name in CHECKS:
        try:
            found[name] = check(name, engine)
        except (ConformanceError, EngineError, ValueError, IndexError) as error:
            found[name] = f"FAILED: {type(error).__name__}: {error}"
    return found
