"""Answers from rollout servers: dead, slow and restarted ones are noticed, and nobody waits for them for ever."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from swift_core.errors import EngineError, TrainingError

from swift_rlhf.rollout.client import RolloutClient, Unavailable
from swift_rlhf.rollout.engine import answered_together
from swift_rlhf.rollout.episodes import Generation
from swift_rlhf.rollout.play import TurnRequest
from swift_rlhf.rollout.sampling import Sampling
from swift_rlhf.rollout.weights import Payload, TrainedWeights
from swift_rlhf.threads import in_thread

logger = logging.getLogger(__name__)

_LONG = 10

POLICY = "policy"
"""Name under which servers keep the adapter."""

T = TypeVar("T")
_Asked = tuple[TurnRequest, int, asyncio.Future[dict[str, Any]]]


class RolloutServers:
    """An engine of one or several servers.

    Requests for the same prompt that come together are sent together, to the server with the fewest answers under way. A server that does
    not answer is left alone for a while and the request goes to another one, or to the same again, until the time is over. A server whose
    answers come from weights that are not the ones it was sent has been restarted: it is sent the weights again and asked again. Answers
    that a server breaks off are continued from where they stopped.

    Versions on the wire are one higher than optimizer steps, so that a server that was sent nothing yet (0) is never taken for current.

    Args:
        clients: the servers.
        weights: packs the weights.
        timeout: seconds after which a server that gives no answer at all, or takes no weights, is given up.
        running: what servers do with answers that are under way while weights come.
        leads: whether this process sends the weights; the others of a run only ask.
        stops: tokens that end an answer, besides the server's own.
    """

    def __init__(
        self,
        clients: Sequence[RolloutClient],
        weights: TrainedWeights,
        *,
        timeout: float = 240.0,
        running: Literal["wait", "abort", "keep"] = "keep",
        leads: bool = True,
        stops: Sequence[int] = (),
    ) -> None:
        self._stops = list(stops)
        self._clients, self._weights, self._timeout, self._running = list(clients), weights, timeout, running
        self._leads = leads
        self._payload = Payload("full", ())
        self._wire = 0
        self._sending = threading.Lock()
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[Sampling, _Asked]]] = {}

    def greet(self) -> None:
        """Find out whether the servers are there, so that a wrong address is known before anything else is done.

        Raises:
            EngineError: when one does not answer in time, or is no rollout server.
        """
        deadline = time.monotonic() + self._timeout
        for client in self._clients:
            self._tried(client, deadline, lambda left, client=client: client.info(timeout=left), "does not answer")

    def _tried(self, client: RolloutClient, deadline: float, act: Callable[[float], T], what: str) -> T:
        """Try again and again until the time is over."""
        tries = 0
        while True:
            try:
                return act(max(deadline - time.monotonic(), 0.01))
            except Unavailable as error:
                pause = client.rest(tries, error.pause)
                tries += 1
                if time.monotonic() + pause >= deadline:
                    raise self._gave_up(f"rollout server {client.url} {what}: {error}") from error
                time.sleep(pause)

    # ---- weights ---------------------------------------------------------------------------------------------------

    def update(self, version: int) -> None:
        """Send the weights as they are now to all servers, unless they have those of this version.

        Raises:
            EngineError: when a server does not take them in time.
        """
        wire = version + 1
        if wire != self._wire:
            self._payload = self._weights.packed()
            self._wire = wire
        for client in self._clients:
            if self._leads:
                self._send(client)
            else:
                client.synced = wire

    def _send(self, client: RolloutClient) -> None:
        """Send a server the weights unless it has them; tried until the time is over."""
        with self._sending:
            if client.synced == self._wire:
                return
            payload = self._payload
            query: dict[str, Any] = {"version": self._wire, "kind": payload.kind, "running": self._running}
            if payload.kind == "adapter":
                query["name"] = POLICY
            deadline = time.monotonic() + self._timeout
            self._tried(client, deadline, lambda left: client.send(payload.parts, query, timeout=left), "takes no weights")
            client.synced, client.down_until = self._wire, 0.0
            client.sent += 1

    def _gave_up(self, what: str) -> EngineError:
        fix = "look at the server's log, restart it and go on with --resume_from_checkpoint; or raise --rollout_timeout"
        return EngineError(f"{what} (gave up after {self._timeout:g} s)", fix=fix)

    # ---- answers ---------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[TurnRequest], sampling: Sampling, *, seed: int, version: int) -> list[Generation]:
        """Return one answer for each request, in order."""
        return answered_together(self, requests, sampling, seed=seed, version=version)

    async def answer(self, request: TurnRequest, sampling: Sampling, *, seed: int, version: int) -> Generation:
        """Return the answer to one request.

        Raises:
            EngineError: when no server gives it in time.
        """
        ids: list[int] = []
        logps: list[float] = []
        versions: list[int] = []
        text = ""
        while True:
            rest = TurnRequest([*request.prompt_ids, *ids], request.max_tokens - len(ids))
            part = await self._asked(rest, sampling, hash((seed, len(ids))) & 0x7FFFFFFF)
            ids += part["token_ids"]
            logps += part["logprobs"]
            versions += [number - 1 for number, count in part["versions"] for _ in range(count)]
            text += part["text"]
            reason = part["finish_reason"]
            if reason != "abort" or len(ids) >= request.max_tokens:
                if len(logps) != len(ids):
                    raise TrainingError(f"{len(logps)} log-probabilities for {len(ids)} tokens", fix="a server of the same release")
                reason = "length" if reason == "abort" else reason
                return Generation(ids, text, reason, logps, min(versions, default=version), versions)

    async def _asked(self, request: TurnRequest, sampling: Sampling, seed: int) -> dict[str, Any]:
        """Return the server's completion; requests of the same moment go together."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Any]] = loop.create_future()
        if loop not in self._waiting:
            self._waiting[loop] = []
            loop.call_soon(self._flush, loop)
        self._waiting[loop].append((sampling, (request, seed, future)))
        return await future

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        groups: dict[tuple[int, ...], list[_Asked]] = {}
        sampling = Sampling()
        for sampling, asked in self._waiting.pop(loop):  # noqa: B007  all of one moment are sampled alike
            groups.setdefault(tuple(asked[0].prompt_ids), []).append(asked)
        for together in groups.values():
            task = loop.create_task(self._settle(together, sampling))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _settle(self, together: list[_Asked], sampling: Sampling) -> None:
        try:
            found = await self._found([(request, seed) for request, seed, _ in together], sampling)
        except Exception as error:  # noqa: BLE001  whoever asked gets it
            for _, _, future in together:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, _, future), completion in zip(together, found, strict=True):
            if not future.done():
                future.set_result(completion)

    async def _found(self, requests: list[tuple[TurnRequest, int]], sampling: Sampling) -> list[dict[str, Any]]:
        started, tries = time.monotonic(), 0
        while True:
            client = min(self._clients, key=lambda each: (max(each.down_until - time.monotonic(), 0), each.running))
            problem, pause = "", 0.0
            try:
                found = await self._ask(client, requests, sampling)
                if found is not None:
                    return found
                problem = "its weights are not the ones it was sent, again and again"
            except Unavailable as error:
                problem, pause = str(error), client.rest(tries, error.pause)
                logger.warning("rollout server %s: %s; asked again", client.url, problem)
            tries += 1
            others = any(each.down_until <= time.monotonic() for each in self._clients)
            pause = 0.0 if others else pause
            if time.monotonic() + pause >= self._silent_since(started, *self._clients) + self._timeout:
                raise self._gave_up(f"rollout server {client.url} does not answer: {problem}")
            await asyncio.sleep(pause)

    def _silent_since(self, started: float, *clients: RolloutClient) -> float:
        """Return since when nothing has come: servers that are busy with other prompts of a large round are not slow."""
        return max(started, *(client.heard for client in clients))

    async def _ask(self, client: RolloutClient, requests: list[tuple[TurnRequest, int]], sampling: Sampling) -> list[dict[str, Any]] | None:
        """Return the completions, or None when the server has other weights than it was sent: it gets them again."""
        wire, adapter = client.synced, POLICY if self._payload.kind == "adapter" else None
        sent = client.sent
        client.running += len(requests)
        patience = max(_LONG * self._timeout, 3600.0)  # of the connection alone; whether anything comes is watched here
        call = in_thread(lambda: client.generate(requests, sampling, self._stops, adapter=adapter, timeout=patience))
        try:
            reply = await self._awaited(call, client)
        except EngineError:
            if not await self._restarted(client, wire):
                raise
            reply = None
        finally:
            client.running -= len(requests)
        found = [result["completions"][0] for result in reply["results"]] if reply is not None else []
        if reply is not None and all(number >= wire for completion in found for number, _ in completion["versions"]):
            client.heard = time.monotonic()
            return found
        if client.sent == sent:  # else it got them while this was under way
            logger.warning("rollout server %s has weights of before: it is sent all of them again", client.url)
            client.synced = -1
        await in_thread(lambda: self._send(client))
        return None

    async def _awaited(self, call: asyncio.Future[dict[str, Any]], client: RolloutClient) -> dict[str, Any]:
        """Return what a call returns.

        Raises:
            Unavailable: when nothing at all has come from the server for too long.
        """
        started = time.monotonic()
        while True:
            left = self._silent_since(started, client) + self._timeout - time.monotonic()
            done, _ = await asyncio.wait({call}, timeout=max(left, 0.0))
            if done:
                return call.result()
            if self._silent_since(started, client) + self._timeout <= time.monotonic():
                raise Unavailable(f"no answer within {self._timeout:g} s")

    async def _restarted(self, client: RolloutClient, wire: int) -> bool:
        """Say whether a refusal comes from a server that has lost the weights, such as one that does not know the adapter."""
        info = await in_thread(lambda: client.info(timeout=min(self._timeout, 10.0)))
        return int(info.get("version", 0)) < wire

    def close(self) -> None:
        """Forget the weights; servers belong to somebody else."""
        self._payload = Payload("full", ())


__all__ = ["POLICY", "RolloutServers"]
