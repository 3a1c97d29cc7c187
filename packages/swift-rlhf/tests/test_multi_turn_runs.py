"""Conversations of several turns in a run: tools, environments, another try; the model's part is written by a script."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from swift_core.errors import ConfigError, EngineError, TrainingError
from swift_core.models.loading import get_model_tokenizer
from swift_core.templates.agents.base import load_agent
from swift_core.templates.chat import ChatTemplate
from swift_core.testing.tiny import make_tiny_model
from swift_rlhf.config.python import GRPOConfig
from swift_rlhf.grpo.trainer import GRPOTrainer
from swift_rlhf.rollout.environments import Running
from swift_rlhf.rollout.episodes import Generation
from swift_rlhf.rollout.mcp import McpServer
from swift_rlhf.rollout.scheduling import load_tools
from swift_rlhf.rollout.tools import ToolBox

TOOLS = '''
def double(number: int) -> int:
    """Double a number.

    Args:
        number: what is doubled.
    """
    return 2 * number
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(Path(tmp_path_factory.mktemp("model")))


class Script:
    """An engine that says what a function of the conversation so far, its place and its turn says."""

    def __init__(self, template: ChatTemplate, say: Callable[[int, int], str]) -> None:
        self.template, self.say, self.turn = template, say, 0
        self.prompts: list[list[str]] = []

    def generate(self, requests: Sequence[Any], sampling: Any, *, seed: int, version: int) -> list[Generation]:
        self.prompts.append([self.template.tokenizer.decode(request.prompt_ids) for request in requests])
        answers = []
        for place in range(len(requests)):
            text = self.say(self.turn, place)
            ids = [*self.template.tokenizer.encode(text, add_special_tokens=False), self.template.stop_token_ids[0]]
            answers.append(Generation(ids, text, "stop", [-1.0] * len(ids), version))
        self.turn += 1
        return answers

    def update(self, version: int) -> None:
        self.turn = 0

    def close(self) -> None:
        pass


def played(
    folder: Path, out: Path, say: Callable[[int, int], str], reward: Any, rows: Any = None, **settings: Any
) -> tuple[Script, list[Any]]:
    """Run one optimizer step and return the engine and the lines of completions.jsonl."""
    model, tokenizer = get_model_tokenizer(folder)
    assert model is not None
    template = ChatTemplate(tokenizer, agent=load_agent("hermes"))
    usual: dict[str, Any] = {
        **{"max_completion_length": 2000, "num_generations": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "beta": 0.0},
        **{"logging_steps": 1, "report_to": ["none"], "disable_tqdm": True, "use_cpu": True, "add_version": False, "max_steps": 1},
        **{"save_strategy": "no", "output_dir": str(out), "max_turns": 3},
    }
    engine = Script(template, say)
    rows = rows or [{"messages": [{"role": "user", "content": "What is twice 21?"}], "solution": "42"}]
    config = GRPOConfig(**{**usual, **settings})
    trainer = GRPOTrainer(model, reward, config, rows, processing_class=tokenizer, template=template, engine=engine)
    try:
        trainer.train()
    finally:
        trainer.close()
    return engine, [json.loads(line) for line in (out / "completions.jsonl").read_text("utf-8").splitlines()]


def logged(out: Path) -> dict[str, Any]:
    return json.loads((out / "logging.jsonl").read_text("utf-8").splitlines()[-1])


def call(**arguments: Any) -> str:
    return "<tool_call>\n" + json.dumps({"name": "double", "arguments": arguments}) + "\n</tool_call>"


def test_tools_answer_the_calls_of_a_run(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "my_tools.py"
    file.write_text(TOOLS)

    def say(turn: int, place: int) -> str:
        if turn == 0:
            return [call(number=21), call(number="x"), "It is 40.", call(nubmer=21)][place]
        return "It is 42."

    engine, lines = played(folder, tmp_path / "out", say, "number", multi_turn_scheduler="tools", tools=[f"{file}:double"])
    assert [line["turns"] for line in lines] == [2, 2, 1, 2] and [line["reward/number"] for line in lines] == [1, 1, 0, 1]
    assert [line["episode_tool_calls"] for line in lines] == [1, 1, 0, 1] and [line["episode_tool_failures"] for line in lines] == [
        0,
        0,
        0,
        1,
    ]
    assert "double" in engine.prompts[0][0] and "42" in engine.prompts[1][0].rpartition("</tool_call>")[2]
    # The model is told what it did wrong.
    assert "missing a required argument: 'number'" in engine.prompts[1][2].rpartition("<tool_response>")[2]
    log = logged(tmp_path / "out")
    # What the model was shown is no part of what it is trained on.
    assert log["completions/mean_length"] < sum(line["tokens"] for line in lines) / 4 and log["completions/mean_turns"] == 1.75
    assert log["episodes/tool_calls"] == 0.75 and log["grad_norm"] > 0


def test_an_environment_gives_the_reward(folder: Path, tmp_path: Path) -> None:
    def say(turn: int, place: int) -> str:
        return [["8", "none", "6", "99"], ["4", "6", "7", "6"], ["6", "6"]][turn][place]

    rows = [{"messages": [{"role": "user", "content": "Play."}], "solution": "6"}]
    settings = {"multi_turn_scheduler": "gym", "gym_env": "number_guessing", "gym_env_kwargs": {"highest": 9}}
    engine, lines = played(folder, tmp_path, say, "environment", rows, **settings)
    assert "Guess a number from 1 to 9." in engine.prompts[0][0] and "Lower." in engine.prompts[1][0]
    assert [line["reward/environment"] for line in lines] == pytest.approx([1.2, 1.0, 1.0, 1.1])
    assert [line["turns"] for line in lines] == [3, 2, 1, 3] and all(line["episode_solved"] for line in lines)


def test_a_wrong_number_may_be_tried_again(folder: Path, tmp_path: Path) -> None:
    engine, lines = played(
        folder, tmp_path, lambda turn, place: "42" if turn or place == 1 else "41", "number", multi_turn_scheduler="retry", max_turns=2
    )
    assert [line["turns"] for line in lines] == [2, 1, 2, 2] and "not right" in engine.prompts[1][0]


def test_history_that_is_written_anew_makes_a_training_row_of_each_turn(folder: Path, tmp_path: Path) -> None:
    engine, lines = played(
        folder, tmp_path, lambda turn, place: f"{turn}{place}", "number", multi_turn_scheduler="retry", max_turns=2, history="rebuild"
    )
    assert [line["turns"] for line in lines] == [2] * 4 and logged(tmp_path)["grad_norm"] == 0  # all rewards are 0
    assert all(prompt.count("assistant") == 2 for prompt in engine.prompts[1])
    row = lines[0]
    assert row["completion"].count("\n") == 1 and row["tokens"] > logged(tmp_path)["completions/mean_length"]


class Slow:
    def reset(self, columns: Any) -> str:
        return ""

    async def step(self, action: str) -> Any:
        await asyncio.sleep(30)

    def close(self) -> None:
        raise KeyError("gone")


def test_environments_that_hang_or_fail_are_named() -> None:
    world = Running(Slow(), 0.05)
    with pytest.raises(TrainingError, match=r"Slow.step took longer than 0.05 s"):
        asyncio.run(world.step("go"))
    with pytest.raises(TrainingError, match=r"Slow.close failed: KeyError: 'gone'"):
        asyncio.run(world.close())


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"multi_turn_scheduler": "tools"}, "--multi_turn_scheduler tools"),
        ({"multi_turn_scheduler": "gym"}, "--multi_turn_scheduler gym"),
        ({"multi_turn_scheduler": "retry", "tools": ["a.py:b"]}, "--tools"),
        ({"multi_turn_scheduler": "retry", "max_turns": 1}, "one turn"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        GRPOConfig(**{"per_device_train_batch_size": 8, "max_turns": 3, **settings})


def test_an_unknown_setting_of_a_scheduler_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Retry has no setting 'hnit'.*hint"):
        played(folder, tmp_path, lambda turn, place: "", "number", multi_turn_scheduler="retry", scheduler_kwargs={"hnit": "again"})


# ---- servers of tools ---------------------------------------------------------------------------------------------------

SERVER = """
import json, sys

for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    method, parameters = message["method"], message["params"]
    if method == "initialize":
        print("hello from the server", flush=True)
        result = {"protocolVersion": parameters["protocolVersion"], "capabilities": {"tools": {}}}
    elif method == "tools/list":
        schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
        result = {"tools": [{"name": "shout", "description": "Say it loudly.", "inputSchema": schema}]}
    elif parameters["arguments"]["word"] == "die":
        sys.exit(3)
    else:
        failed = parameters["arguments"]["word"] == "fail"
        result = {"content": [{"type": "text", "text": parameters["arguments"]["word"].upper()}], "isError": failed}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


def shouted(box: ToolBox, *words: str) -> list[Any]:
    return asyncio.run(box.run([("shout", {"word": word}) for word in words]))


def test_tools_of_a_server_over_pipes(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    box = ToolBox(load_tools([f"mcp:{sys.executable} {script}"], timeout=60.0), timeout=60.0)
    try:
        assert box.schemas()[0]["function"]["parameters"]["required"] == ["word"]
        assert [outcome.text for outcome in shouted(box, "hey", "you")] == ["HEY", "YOU"]
        (failed,) = shouted(box, "fail")
        assert failed.failed and "FAIL" in failed.text
        (dead,) = shouted(box, "die")
        assert dead.failed and "code 3" in dead.text
    finally:
        box.close()
    with pytest.raises(EngineError, match="does not start"):
        McpServer("no_such_command_here")


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_of_a_server_over_http(streamed: bool) -> None:
    sessions: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sessions.append(self.headers["Mcp-Session-Id"])
            results = {
                "initialize": {},
                "tools/list": {"tools": [{"name": "shout"}]},
                "tools/call": {"content": [{"type": "text", "text": "HEY"}]},
            }
            if "id" not in message:
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": results[message["method"]]})
            data = (f"event: message\ndata: {body}\n\n" if streamed else body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream" if streamed else "application/json")
            self.send_header("Mcp-Session-Id", "s1")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        box = ToolBox(load_tools([f"http://127.0.0.1:{server.server_port}/mcp"], timeout=10.0))
        assert shouted(box, "hey")[0].text == "HEY"
        assert sessions == [None, "s1", "s1", "s1"]
    finally:
        server.shutdown()
        server.server_close()
