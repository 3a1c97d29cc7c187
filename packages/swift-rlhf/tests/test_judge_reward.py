"""A judge behind an endpoint: what it is asked, how its score is read, and what happens when it is busy."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from swift_core.errors import ConfigError, TrainingError
from swift_rlhf.rewards.functions import RewardSample, make_rewards
from swift_rlhf.rewards.pool import RewardPool


class Endpoint(BaseHTTPRequestHandler):
    """Answers with what the test put into the script of the server, or with a status."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((asked, self.headers.get("Authorization")))
        reply = self.server.script(asked["messages"][-1]["content"], len(self.server.asked))
        status, body = (
            (reply, b"{}") if isinstance(reply, int) else (200, json.dumps({"choices": [{"message": {"content": reply}}]}).encode())
        )
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None: ...


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def scored(server, texts, **options):
    address = f"http://127.0.0.1:{server.server_port}/v1"
    rewards = make_rewards(["judge"], options={"judge_base_url": address, "judge_model": "tiny", **options})
    rows = [
        RewardSample(
            completion=text, messages=[{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": text}], columns={"hint": "{4}"}
        )
        for text in texts
    ]
    with RewardPool(rewards) as pool:
        return pool.score(rows).values[:, 0].tolist()


def test_scores_are_read_and_scaled(server, monkeypatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    server.script = lambda prompt, _: "Score: 3 at first, then\n**Score:** 8" if "\nfour\n" in prompt else "score = 99"
    assert scored(server, ["four", "five"], judge_api_key="JUDGE_KEY") == pytest.approx([0.8, 1.0])
    asked, key = server.asked[0]
    assert (asked["model"], asked["temperature"], key) == ("tiny", 0.0, "Bearer secret")
    assert "2+2?" in asked["messages"][0]["content"]


def test_the_prompt_may_name_columns(server) -> None:
    server.script = lambda prompt, _: "Score: 10" if prompt == "{4} or four?" else "Score: 0"
    assert scored(server, ["four"], judge_prompt="{hint} or {completion}?") == [1.0]
    with pytest.raises(ConfigError, match="judge_prompt"):
        scored(server, ["four"], judge_prompt="{missing}")


def test_busy_servers_and_replies_without_a_score_are_asked_again(server) -> None:
    server.script = lambda _, count: (503, "no idea", "Score: 5")[count - 1]
    assert scored(server, ["four"]) == [0.5]
    assert len(server.asked) == 3


def test_a_judge_that_never_scores_ends_the_run_with_its_words(server) -> None:
    server.script = lambda _, count: "no idea"
    with pytest.raises(TrainingError, match="no score in the reply 'no idea' after 1 tries"):
        scored(server, ["four"], judge_retries=0)
    server.script = lambda _, count: 404
    with pytest.raises(TrainingError, match="status 404"):
        scored(server, ["four"])


def test_settings_are_checked_before_training() -> None:
    with pytest.raises(ConfigError, match="judge_model"):
        make_rewards(["judge"], options={"judge_base_url": "http://127.0.0.1:1"})
    with pytest.raises(ConfigError, match="no http address"):
        make_rewards(["judge"], options={"judge_base_url": "127.0.0.1", "judge_model": "m"})
