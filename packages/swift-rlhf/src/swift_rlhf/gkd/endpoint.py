"""A teacher behind an OpenAI-compatible server: its likeliest tokens at each place of a conversation."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from swift_core.batching.collate import IGNORED, Batch
from swift_core.errors import EngineError
from torch import Tensor, nn

from swift_rlhf.gkd.samples import LessonBatch
from swift_rlhf.gkd.teacher import Measure, Said

_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
TRIES = 4
REQUESTS = 8
"""Conversations that the server gets at the same time."""


class EndpointTeacher:
    """Asks `POST /v1/completions` with `prompt_logprobs`, as vLLM answers it: token ids in, ids and log-probabilities out.

    Args:
        url: of the server, with `/v1`.
        measure: how distributions are compared; its `topk` is asked for.
        model: name of the teacher there; None: the first that the server lists.
        key: environment variable with the key.
        timeout: seconds for a request.
    """

    def __init__(self, url: str, measure: Measure, *, model: str | None, key: str, timeout: float) -> None:
        self._url, self._measure, self._key, self._timeout = url.rstrip("/"), measure, os.environ.get(key), timeout
        self._model = model

    def check(self) -> None:
        """Find the model on the server.

        Raises:
            EngineError: when the server does not answer, or has no such model.
        """
        listed = [str(each["id"]) for each in self._asked("/models", None)["data"]]
        if self._model is not None and self._model not in listed:
            fix = f"--teacher_server_model {listed[0]}" if listed else "load one there"
            raise EngineError(f"{self._url} has no model {self._model!r}, only {', '.join(listed)}", fix=fix)
        self._model = self._model or listed[0]

    def prepare(self, model: nn.Module, batches: Sequence[LessonBatch]) -> None:
        """Ask about all conversations of a step at once."""
        for batch, known in zip(batches, self._learned([batch.teacher_rows for batch in batches]), strict=True):
            batch.known = known

    def look(self, model: nn.Module, batch: LessonBatch) -> Said:
        """Return the likeliest tokens that the server told."""
        known = batch.known or self._learned([batch.teacher_rows])[0]
        device = batch.input_ids.device
        return Said(tuple(each.to(device) for each in known), self._measure.partial)

    def _learned(self, batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
        rows = [_conversations(batch) for batch in batches]
        with ThreadPoolExecutor(REQUESTS) as pool:
            answers = iter(list(pool.map(self._conversation, [ids for row in rows for ids, _ in row])))
        return [self._tensors([entry for _, wanted in row for entry in _chosen(next(answers), wanted)]) for row in rows]

    def _tensors(self, places: Sequence[Mapping[int, float]]) -> tuple[Tensor, Tensor]:
        count = self._measure.topk or 1
        logps = torch.full((len(places), count), -torch.inf)
        ids = torch.zeros((len(places), count), dtype=torch.long)
        for row, place in enumerate(places):
            # The server adds the token itself where it is none of the likeliest.
            best = sorted(place.items(), key=lambda pair: -pair[1])[:count]
            for column, (token, logp) in enumerate(best):
                ids[row, column], logps[row, column] = token, logp
        return logps, ids

    def _conversation(self, ids: list[int]) -> list[dict[int, float]]:
        """Return, for each token but the first, what the server held for likely in its place."""
        if self._model is None:
            self.check()
        body = {"model": self._model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": self._measure.topk}
        answer = self._asked("/completions", body)
        try:
            places = answer["choices"][0]["prompt_logprobs"]
            found = [{int(token): float(each["logprob"]) for token, each in place.items()} for place in places[1:]]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            fix = "use a server that answers `prompt_logprobs`, such as vLLM"
            raise EngineError(
                f"{self._url} does not tell the probabilities of a prompt ({type(error).__name__}: {error})", fix=fix
            ) from error
        if len(found) != len(ids) - 1:
            what = f"{self._url} tells {len(found) + 1} places of a prompt of {len(ids)} tokens"
            raise EngineError(what, fix="the teacher must read the tokens as they are: check its model and context length")
        return found

    def _asked(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        data = None if body is None else json.dumps(body).encode()
        problem = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(0.5 * 2**attempt)
            try:
                with urllib.request.urlopen(urllib.request.Request(self._url + path, data, headers), timeout=self._timeout) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code not in _RETRIED:
                    break
            except (OSError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
        raise EngineError(f"the teacher at {self._url}{path} does not answer: {problem}", fix="check --teacher_model_server and the server")


def _conversations(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of each conversation with the places of its labelled tokens."""
    found: list[tuple[list[int], list[int]]] = []
    lengths = batch.segments
    if lengths is None:
        rows = [
            (row[: int(mask.sum())], label) for row, mask, label in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True)
        ]
    else:
        rows = list(zip(batch.input_ids[0].split(list(lengths)), batch.labels[0].split(list(lengths)), strict=True))
    for ids, labels in rows:
        wanted = [place for place, label in enumerate(labels.tolist()) if label != IGNORED and place]
        if wanted:
            found.append((ids.tolist(), wanted))
    return found


def _chosen(places: Sequence[dict[int, float]], wanted: Sequence[int]) -> list[dict[int, float]]:
    return [places[place - 1] for place in wanted]
