"""Rollout servers over the wire: a small server that says what it is told to, and fails as it is told to."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from safetensors.torch import load
from swift_core.errors import EngineError
from swift_core.models.loading import get_model_tokenizer
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.tuning import saver_for
from swift_rlhf.config.python import GRPOConfig
from swift_rlhf.grpo.trainer import GRPOTrainer
from swift_rlhf.rollout.client import RolloutClient
from swift_rlhf.rollout.play import TurnRequest
from swift_rlhf.rollout.sampling import Sampling
from swift_rlhf.rollout.servers import RolloutServers
from swift_rlhf.rollout.weights import TrainedWeights, whole_weights


class FakeServer:
    """Speaks the wire of `swift rollout`; `trouble` is asked at each generation: a status, `stall`, `abort` or nothing."""

    def __init__(self, port: int = 0) -> None:
        self.version, self.weights, self.received, self.asked = 0, dict[str, Any](), list[dict[str, Any]](), list[Any]()
        self.trouble: Any = lambda number: None
        self.over = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def reply(self, value: Any, status: int = 200) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.reply({"version": fake.version, "engine": "fake", "state": "running"})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                place = urlsplit(self.path)
                if place.path == "/rollout/weights":
                    fake.received.append({name: values[0] for name, values in parse_qs(place.query).items()})
                    fake.weights |= load(body)
                    fake.version = int(fake.received[-1]["version"])
                    return self.reply({"version": fake.version})
                asked = json.loads(body)
                fake.asked.append(asked)
                trouble = fake.trouble(len(fake.asked))
                if isinstance(trouble, int):
                    return self.reply({"error": {"message": "told to"}}, trouble)
                if trouble == "stall":
                    fake.over.wait(20)
                    return None
                return self.reply(
                    {"version": fake.version, "results": [fake.answered(each, trouble == "abort") for each in asked["requests"]]}
                )

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def answered(self, request: dict[str, Any], abort: bool) -> dict[str, Any]:
        drawn = random.Random(request["seed"])
        count = 2 if abort else request["max_tokens"]
        ids = [drawn.randrange(5, 60) for _ in range(count)]
        completion = {"token_ids": ids, "logprobs": [-4.0] * count, "text": f"<{count}>", "versions": [[self.version, count]]}
        return {"completions": [{**completion, "index": 0, "finish_reason": "abort" if abort else "length"}]}

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(Path(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return get_model_tokenizer(folder)[0]


def engine(model: Any, *servers: FakeServer | str, timeout: float = 1.5) -> RolloutServers:
    urls = [each if isinstance(each, str) else each.url for each in servers]
    return RolloutServers([RolloutClient(url) for url in urls], TrainedWeights(model, lambda: saver_for(model)), timeout=timeout)


def ask(made: RolloutServers, count: int = 3, version: int = 0) -> Any:
    made.update(version)
    return made.generate([TurnRequest([7, 8, place], 5) for place in range(count)], Sampling(), seed=1, version=version)


def test_answers_come_with_their_weights(fake: FakeServer, model: Any) -> None:
    made = engine(model, fake)
    answers = ask(made, version=3)
    assert [len(answer.token_ids) for answer in answers] == [5, 5, 5] and {answer.version for answer in answers} == {3}
    assert fake.version == 4 and fake.received[0]["kind"] == "full"
    names = dict(whole_weights(model))
    assert set(fake.weights) == set(names) and all(torch.equal(fake.weights[name], names[name]) for name in names)
    ask(made, version=3)
    assert len(fake.received) == 1  # nothing has changed


def test_requests_for_one_prompt_go_together(fake: FakeServer, model: Any) -> None:
    made = engine(model, fake)
    made.update(0)
    made.generate([TurnRequest([place // 4], 3) for place in range(8)], Sampling(top_k=3), seed=1, version=0)
    assert sorted(len(asked["requests"]) for asked in fake.asked) == [4, 4]
    assert all(asked["sampling"]["top_k"] == 3 and asked["logprobs"] for asked in fake.asked)
    assert len({request["seed"] for asked in fake.asked for request in asked["requests"]}) == 8


@pytest.mark.parametrize("trouble", [500, 503, 429])
def test_a_failing_server_is_asked_again(fake: FakeServer, model: Any, trouble: int) -> None:
    fake.trouble = lambda number: trouble if number < 3 else None
    assert len(ask(engine(model, fake), count=1)) == 1 and len(fake.asked) == 3


@pytest.mark.parametrize("trouble", [500, "stall"])
def test_a_server_that_goes_on_failing_ends_the_wait(fake: FakeServer, model: Any, trouble: Any) -> None:
    fake.trouble = lambda number: trouble
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"gave up after 0.5 s"):
        ask(engine(model, fake, timeout=0.5))
    assert time.monotonic() - started < 10


def test_a_large_round_may_take_longer_as_long_as_answers_come(fake: FakeServer, model: Any) -> None:
    made = engine(model, fake, timeout=0.8)
    made.update(0)
    turn = threading.Lock()

    def one_by_one(number: int) -> None:
        with turn:
            fake.over.wait(0.35)  # four prompts take longer than the limit, one does not

    fake.trouble = one_by_one
    answers = made.generate([TurnRequest([place], 2) for place in range(4)], Sampling(), seed=0, version=0)
    assert len(answers) == 4 and len(fake.asked) == 4


def test_a_refusal_is_not_tried_again(fake: FakeServer, model: Any) -> None:
    made = engine(model, fake)
    made.update(0)
    fake.version = 1
    fake.trouble = lambda number: 400
    with pytest.raises(EngineError, match="status 400: told to"):
        made.generate([TurnRequest([1], 2)], Sampling(), seed=0, version=0)
    assert len(fake.asked) == 1


def test_another_server_takes_over(fake: FakeServer, model: Any) -> None:
    other = FakeServer()
    made = engine(model, fake, other)
    made.update(0)
    other.close()
    answers = made.generate([TurnRequest([place], 4) for place in range(6)], Sampling(), seed=2, version=0)
    assert len(answers) == 6 and sum(len(asked["requests"]) for asked in fake.asked) == 6


def test_a_restarted_server_gets_the_weights_again(fake: FakeServer, model: Any) -> None:
    made = engine(model, fake)
    first = ask(made, version=2)
    fake.version, fake.weights = 0, {}  # as a server that starts anew
    before = len(fake.received)
    again = made.generate([TurnRequest([7, 8, place], 5) for place in range(3)], Sampling(), seed=1, version=2)
    assert [answer.token_ids for answer in again] == [answer.token_ids for answer in first]
    # Once, or again where the machine was too slow for the time limit of the test.
    assert {(each["version"], each["kind"]) for each in fake.received[before:]} == {("3", "full")}
    assert fake.version == 3 and set(fake.weights) == set(dict(whole_weights(model)))


def test_answers_that_are_broken_off_are_continued(fake: FakeServer, model: Any) -> None:
    made = engine(model, fake)
    made.update(0)
    # Weights move after the first two tokens.
    fake.trouble = lambda number: "abort" if number == 1 else setattr(fake, "version", 2)
    (answer,) = made.generate([TurnRequest([9], 5)], Sampling(), seed=0, version=0)
    assert len(answer.token_ids) == 5 and answer.versions == [0, 0, 1, 1, 1] and answer.version == 0
    assert fake.asked[1]["requests"][0]["prompt_ids"] == [9, *answer.token_ids[:2]] and answer.text == "<2><3>"


def test_no_server_is_said_before_anything_else(model: Any) -> None:
    with pytest.raises(EngineError, match="does not answer"):
        engine(model, "http://127.0.0.1:9", timeout=0.3).greet()


# ---- in a run ---------------------------------------------------------------------------------------------------------


def shorter(completions: list[str], *, completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    return [float(ids[0] % 2) for ids in completion_ids]


def trained(folder: Path, out: Path, url: str, *, resume: bool = False, **settings: Any) -> GRPOTrainer:
    loaded, tokenizer = get_model_tokenizer(folder)
    assert loaded is not None
    usual: dict[str, Any] = {
        **{"max_completion_length": 4, "num_generations": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "beta": 0.0},
        **{"logging_steps": 1, "report_to": ["none"], "disable_tqdm": True, "use_cpu": True, "add_version": False},
        **{"save_steps": 100, "output_dir": str(out), "rollout_url": [url], "rollout_timeout": 1.0},
    }
    rows = [{"messages": [{"role": "user", "content": word}]} for word in ("one", "two", "six", "ten")]
    made = GRPOTrainer(loaded, shorter, GRPOConfig(**{**usual, **settings}), rows, processing_class=tokenizer)
    try:
        made.train(resume_from_checkpoint=resume or None)
    finally:
        made.close()
    return made


def test_a_server_that_dies_leaves_a_checkpoint_and_the_run_goes_on_with_another(folder: Path, tmp_path: Path) -> None:
    first = FakeServer()
    first.trouble = lambda number: 500 if number > 4 else None  # two prompts a step: it fails in step 3
    with pytest.raises(EngineError, match="gave up after 1 s"):
        trained(folder, tmp_path, first.url, max_steps=5)
    first.close()
    assert (tmp_path / "checkpoint-2").is_dir()
    second = FakeServer()
    trained(folder, tmp_path, second.url, resume=True, max_steps=5)
    second.close()
    assert [entry["version"] for entry in second.received] == ["3", "4", "5"] and len(second.weights) > 10
    assert [json.loads(line)["step"] for line in (tmp_path / "logging.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_rounds_written_ahead_are_stale_by_a_step(fake: FakeServer, folder: Path, tmp_path: Path) -> None:
    trained(folder, tmp_path, fake.url, max_steps=4, async_generate=True, save_strategy="no")
    lines = [json.loads(line) for line in (tmp_path / "logging.jsonl").read_text().splitlines()]
    assert [line["staleness"] for line in lines] == [0, 1, 1, 1]
    # What wrote the answers is what the update is held to.
    assert lines[0]["policy/ratio"] == pytest.approx(1) and lines[2]["policy/ratio"] != pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"async_generate": True}, "--async_generate"),
        ({"rollout_url": ["localhost:8000"]}, "--rollout_url"),
        ({"vllm_mode": "server"}, "--vllm_mode server"),
        ({"sleep_level": 1}, "--sleep_level"),
        ({"vllm_server_host": ["a", "b"], "vllm_server_port": [1]}, "--vllm_server_port"),
        ({"rollout_url": ["http://a"], "vllm_enforce_eager": True}, "--vllm_enforce_eager"),
    ],
)
def test_settings_without_their_engine_are_refused(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(ValueError, match=where):
        GRPOConfig(per_device_train_batch_size=8, **settings)


def test_servers_are_named_by_address_or_by_host_and_port() -> None:
    made = GRPOConfig(per_device_train_batch_size=8, vllm_server_host=["10.0.0.1", "10.0.0.2"], vllm_server_port=[8000, 8001])
    assert made.service.urls == ["http://10.0.0.1:8000", "http://10.0.0.2:8001"]
    assert GRPOConfig(per_device_train_batch_size=8, rollout_url=["http://a"]).service.urls == ["http://a"]
