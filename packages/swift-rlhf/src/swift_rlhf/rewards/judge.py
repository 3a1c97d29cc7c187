"""A language model behind an OpenAI-compatible endpoint as the judge of answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from swift_core.errors import ConfigError, EngineError, Problem

PROMPT = """Judge the answer to the task below. Think about whether it is right, complete and clear.
End with a line of the form `Score: N`, where N is a number from {lowest} (useless) to {highest} (perfect).

# Task
{task}

# Answer
{completion}
"""
_SCORE = r"[Ss]core\W{1,4}([-+]?\d+(?:\.\d+)?)"
_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class Judge:
    """Asks a chat model for a score and returns it on the scale from 0 to 1.

    Args:
        judge_base_url: such as `http://127.0.0.1:8000/v1`.
        judge_model: name of the model there.
        judge_prompt: what it is asked; `{task}` is the conversation up to the answer, `{completion}` the answer, `{lowest}` and
            `{highest}` the scale, and any column of the data may stand there as well, such as `{solution}`.
        judge_score_pattern: regular expression whose last match in the reply has the score as its first group.
        judge_lowest, judge_highest: the ends of the scale.
        judge_temperature, judge_max_tokens: as sent.
        judge_timeout: seconds for a request.
        judge_retries: further tries after a busy or failing server, with growing pauses, or a reply without a score.
        judge_concurrency: requests at a time.
        judge_api_key: name of the environment variable with the key.
    """

    def __init__(
        self,
        *,
        judge_base_url: str,
        judge_model: str,
        judge_prompt: str = PROMPT,
        judge_score_pattern: str = _SCORE,
        judge_lowest: float = 0.0,
        judge_highest: float = 10.0,
        judge_temperature: float = 0.0,
        judge_max_tokens: int = 1024,
        judge_timeout: float = 60.0,
        judge_retries: int = 3,
        judge_concurrency: int = 8,
        judge_api_key: str = "OPENAI_API_KEY",
    ) -> None:
        if not judge_base_url.startswith(("http://", "https://")):
            raise ConfigError([Problem("--judge_base_url", f"{judge_base_url!r} is no http address", "such as http://127.0.0.1:8000/v1")])
        if judge_highest <= judge_lowest:
            raise ConfigError([Problem("--judge_highest", f"{judge_highest} is not above judge_lowest {judge_lowest}", "for example 10")])
        self._url = judge_base_url.rstrip("/") + "/chat/completions"
        self._prompt, self._pattern = judge_prompt, re.compile(judge_score_pattern)
        self._ends = (judge_lowest, judge_highest)
        self._body = {"model": judge_model, "temperature": judge_temperature, "max_tokens": judge_max_tokens}
        self._timeout, self._retries, self._concurrency = judge_timeout, judge_retries, judge_concurrency
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._key = judge_api_key

    async def __call__(self, completions: Sequence[str], **columns: Any) -> list[float | None]:
        """Return one score for each completion.

        Raises:
            EngineError: when the endpoint does not answer, or not with a score, in spite of all tries.
            ConfigError: when the prompt asks for a column that the data does not have.
        """
        # Calls for several prompts run at the same time; the limit holds for all of them.
        gate = self._gates.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._concurrency))

        async def one(index: int, completion: str) -> float:
            prompt = self._asked(completion, {name: values[index] for name, values in columns.items()})
            async with gate:
                return await self._score(prompt)

        return list(await asyncio.gather(*(one(index, completion) for index, completion in enumerate(completions))))

    def _asked(self, completion: str, row: dict[str, Any]) -> str:
        turns = row.get("messages") or []
        task = "\n\n".join(str(turn.get("content", "")) for turn in turns[:-1])
        fields = {**row, "task": task, "completion": completion, "lowest": f"{self._ends[0]:g}", "highest": f"{self._ends[1]:g}"}
        try:
            return self._prompt.format(**fields)
        except (KeyError, IndexError, ValueError) as error:
            known = ", ".join(sorted(fields))
            raise ConfigError(
                [Problem("--judge_prompt", f"cannot be filled in: {error}", f"double other braces; fields: {known}")]
            ) from error

    async def _score(self, prompt: str) -> float:
        problem = ""
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(min(0.5 * 2 ** (attempt - 1), 20))
            try:
                reply = await asyncio.to_thread(self._request, prompt)
            except _Busy as busy:
                problem = str(busy)
                continue
            found = self._pattern.findall(reply)
            if found:
                lowest, highest = self._ends
                return (min(max(float(found[-1]), lowest), highest) - lowest) / (highest - lowest)
            problem = f"no score in the reply {reply[-200:]!r}"
        raise EngineError(
            f"judge {self._url}: {problem} after {self._retries + 1} tries", fix="check the server, --judge_prompt and the model"
        )

    def _request(self, prompt: str) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key):
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps({**self._body, "messages": [{"role": "user", "content": prompt}]}).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self._url, body, headers), timeout=self._timeout) as response:
                answer: Any = json.load(response)
            return str(answer["choices"][0]["message"]["content"] or "")
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            if error.code in _RETRIED:
                raise _Busy(f"status {error.code}: {said}") from error
            raise EngineError(f"judge {self._url}: status {error.code}: {said}", fix="check --judge_model and the key") from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise _Busy(f"{type(error).__name__}: {error}") from error


class _Busy(Exception):
    """Raised where another try may help."""
