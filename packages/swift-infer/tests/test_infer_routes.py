"""What the server makes of answers (tools, thoughts, log-probabilities), and how it watches over itself."""

import asyncio
import json
import signal
import threading
import time
from contextlib import contextmanager

import httpx
import openai
import pytest
import uvicorn
from swift_core.protocols import Capabilities, RequestConfig, TextDelta, Usage
from swift_core.testing.tiny import make_tiny_model
from swift_infer import InferRequest, TransformersEngine
from swift_infer.config import ServerSection
from swift_infer.server.app import create_app
from swift_infer.server.reading import AnswerReader, Thoughts
from swift_infer.server.serve import Draining, open_port

MESSAGES = [{"role": "user", "content": "Who are you?"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


class Template:
    agent = None


class Tokenizer:
    chat_template = "<tool_call>"


class Script:
    """Writes a text in small pieces; holds each request until `go` is set, when it is told to."""

    name = model_name = "script"
    capabilities = Capabilities(structured=True)
    template, tokenizer = Template(), Tokenizer()
    max_batch_size = 2

    def __init__(self, text="hello", *, size=3, hold=False):
        self.text, self.size, self.hold = text, size, hold
        self.requests, self.aborted, self.error = [], 0, None
        self.started, self.go = threading.Event(), threading.Event()

    async def astream(self, request, config=None):
        self.requests.append((request, config))
        self.started.set()
        while self.hold and not self.go.is_set():
            await asyncio.sleep(0.01)
        for start in range(0, len(self.text), self.size):
            yield TextDelta(self.text[start : start + self.size])
        yield TextDelta("", 0, "abort" if self.aborted else "stop", Usage(4, len(self.text)))

    def abort(self, request_id=None):
        self.aborted += 1
        self.go.set()
        return 1

    def close(self):
        pass


@contextmanager
def serving(engine, **settings):
    section = ServerSection(**settings)
    length = getattr(engine, "context_length", 512)
    app = create_app(engine, section, RequestConfig(max_tokens=16, temperature=0), context_length=length)
    listener = open_port("127.0.0.1", 0)
    listener.listen()
    server = Draining(app, engine, ServerSection(**{**settings, "log_level": "critical"}))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def post(url, body, path="/v1/chat/completions"):
    return httpx.post(url + path, json=body, timeout=60)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = TransformersEngine(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"), use_cpu=True)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def real(engine):
    with serving(engine) as (url, _):
        yield url


# --- tools and thoughts ---


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_read_out_of_the_answer(stream):
    with serving(Script(f"I look it up.\n{CALL}")) as (url, _):
        found = client(url).chat.completions.create(model="script", messages=MESSAGES, tools=[WEATHER], stream=stream)
        if stream:
            chunks = [chunk.choices[0] for chunk in found]
            text = "".join(chunk.delta.content or "" for chunk in chunks)
            calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
            reason = chunks[-1].finish_reason
            assert [call.index for call in calls] == [0]
        else:
            choice = found.choices[0]
            text, calls, reason = choice.message.content, choice.message.tool_calls, choice.finish_reason
    assert (text.strip(), reason) == ("I look it up.", "tool_calls")
    assert calls[0].function.name == "weather" and json.loads(calls[0].function.arguments) == {"city": "Oslo"} and calls[0].id


@pytest.mark.parametrize(("given", "calls"), [({}, 2), ({"parallel_tool_calls": False}, 1), ({"tool_choice": "none"}, 0)])
def test_choices_about_tools(given, calls):
    engine = Script(CALL + "\n" + CALL)
    with serving(engine) as (url, _):
        found = client(url).chat.completions.create(model="script", messages=MESSAGES, tools=[WEATHER], **given)
    assert len(found.choices[0].message.tool_calls or []) == calls
    assert (engine.requests[0][0].tools is None) == (calls == 0)


@pytest.mark.parametrize(
    ("choice", "text", "schema"),
    [
        ("required", '[{"name": "weather", "parameters": {"city": "Rome"}}]', "array"),
        ({"type": "function", "function": {"name": "weather"}}, '{"city": "Rome"}', "object"),
    ],
)
def test_a_call_can_be_forced(choice, text, schema):
    engine = Script(text)
    with serving(engine) as (url, _):
        found = client(url).chat.completions.create(model="script", messages=MESSAGES, tools=[WEATHER], tool_choice=choice)
    call = (found.choices[0].message.tool_calls or [])[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
    assert found.choices[0].message.content is None and engine.requests[0][1].structured.json_schema["type"] == schema


def test_tools_that_the_model_would_not_see_are_refused(real):
    found = post(real, {"model": "tiny", "messages": MESSAGES, "tools": [WEATHER]})
    assert (found.status_code, found.json()["error"]["param"]) == (400, "tools")


def test_a_conversation_with_calls_reaches_the_engine():
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
    ]
    engine = Script("cold")
    with serving(engine) as (url, _):
        client(url).chat.completions.create(model="script", messages=messages, tools=[WEATHER])
    sent = engine.requests[0][0].messages
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"} and sent[2]["tool_call_id"] == "c1"


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize(
    ("text", "opened", "thought", "content"),
    [
        ("<think>\nhm < 3</think>\n\nYes.", False, "hm < 3", "Yes."),
        ("so</think>Yes", True, "so", "Yes"),
        ("Yes < no", False, "", "Yes < no"),
        ("<think>cut off", False, "cut off", ""),
        ("<thin", False, "", "<thin"),
    ],
)
def test_thoughts_are_told_from_the_answer(text, opened, thought, content, size):
    reader = AnswerReader(thoughts=Thoughts(opened=opened))
    pieces = [piece for start in range(0, len(text), size) for piece in reader.feed(text[start : start + size])] + reader.finish()
    assert "".join(piece.text for piece in pieces if piece.kind == "reasoning") == thought
    assert "".join(piece.text for piece in pieces if piece.kind == "content") == content


@pytest.mark.parametrize(("reasoning", "content", "thought"), [(True, "Yes", "hm"), (False, "<think>hm</think>Yes", None)])
def test_reasoning_content(reasoning, content, thought):
    with serving(Script("<think>hm</think>Yes"), reasoning=reasoning) as (url, _):
        message = client(url).chat.completions.create(model="script", messages=MESSAGES).choices[0].message
    assert (message.content, getattr(message, "reasoning_content", None)) == (content, thought)


# --- numbers ---


def test_logprobs_name_tokens_by_text(real):
    found = client(real).chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=3)
    content = found.choices[0].logprobs.content or []
    assert len(content) == 5 and all(len(one.top_logprobs) == 3 and one.logprob <= 0 for one in content)
    assert content[0].token == content[0].top_logprobs[0].token


@pytest.mark.parametrize("stream", [False, True])
def test_plain_completions(real, engine, stream):
    ids = engine.prompts.tokenize("The capital of")
    expected = engine.infer([InferRequest(prompt_ids=ids)], RequestConfig(max_tokens=6, temperature=0))[0].choices[0].message.content
    asked = {"model": "tiny", "max_tokens": 6, "temperature": 0, "logprobs": 1, "stream": stream}
    found = client(real).completions.create(prompt=["The capital of", "a"], **asked)
    if stream:
        chunks = list(found)
        texts = ["".join(chunk.choices[0].text for chunk in chunks if chunk.choices[0].index == index) for index in (0, 1)]
    else:
        texts = [choice.text for choice in found.choices]
        assert found.usage.completion_tokens == 12 and len(found.choices[0].logprobs.tokens) == 6
    assert texts[0] == expected and len(texts) == 2
    assert client(real).completions.create(prompt=ids, **{**asked, "stream": False}).choices[0].text == expected


def test_tokenize_and_back(real, engine):
    found = post(real, {"prompt": "The capital of"}, "/tokenize").json()
    assert found["tokens"] == engine.prompts.tokenize("The capital of") and found["count"] == len(found["tokens"])
    assert post(real, {"tokens": found["tokens"]}, "/detokenize").json() == {"prompt": "The capital of"}
    assert post(real, {"messages": MESSAGES}, "/tokenize").json()["tokens"] == engine.prompt_ids(InferRequest(MESSAGES))
    assert post(real, {"tokens": [10**6]}, "/detokenize").status_code == 400


@pytest.mark.parametrize(
    "change",
    [
        {"logit_bias": {str(number): 1 for number in range(2000)}},
        {"logit_bias": {"1": float("1e9")}},
        {"top_logprobs": 21, "logprobs": True},
        {"top_logprobs": 2},
        {"stop_token_ids": list(range(5000))},
        {"tools": [WEATHER] * 200},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_schema"}},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"presence_penalty": 3},
        {"min_tokens": -1},
    ],
)
def test_values_over_the_caps_are_refused_fast(real, change):
    started = time.monotonic()
    found = post(real, {"model": "tiny", "messages": MESSAGES, **change})
    assert found.status_code == 400 and found.json()["error"]["message"]
    assert time.monotonic() - started < 5


def test_metrics_count_and_tell_nothing_of_requests(engine):
    with serving(engine) as (url, _):
        client(url).chat.completions.create(model="tiny", messages=[{"role": "user", "content": "zanzibar"}], max_tokens=4)
        post(url, {"model": "made-up-name", "messages": MESSAGES})
        text = httpx.get(f"{url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["swift_generation_tokens_total"]) == 4 and float(values["swift_requests_running"]) == 0
    assert float(values["swift_e2e_request_latency_seconds_count"]) == 1
    assert "zanzibar" not in text and "made-up-name" not in text
    for name in {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}:
        assert name.startswith("swift_")


# --- the end of requests and servers ---


def test_a_request_over_the_time_is_a_504_and_leaves_its_place():
    engine = Script(hold=True)
    with serving(engine, request_timeout=0.2) as (url, server):
        found = post(url, {"model": "script", "messages": MESSAGES})
        assert (found.status_code, found.json()["error"]["code"]) == (504, "timeout")
        assert server._admission.running == 0


def test_a_server_that_is_stopped_finishes_what_runs_and_takes_nothing_new():
    engine = Script(hold=True)
    with serving(engine, shutdown_timeout=30) as (url, server):
        answers = []
        running = threading.Thread(target=lambda: answers.append(post(url, {"model": "script", "messages": MESSAGES})))
        running.start()
        assert engine.started.wait(10)
        server.handle_exit(signal.SIGTERM, None)
        refused = post(url, {"model": "script", "messages": MESSAGES})
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert httpx.get(f"{url}/ready").status_code == 503 and httpx.get(f"{url}/health").status_code == 200
        engine.go.set()
        running.join(20)
        assert answers[0].json()["choices"][0]["message"]["content"] == "hello" and engine.aborted == 0


def test_a_server_that_is_stopped_ends_what_takes_too_long():
    engine = Script(hold=True)
    with serving(engine, shutdown_timeout=0) as (url, server):
        running = threading.Thread(target=lambda: post(url, {"model": "script", "messages": MESSAGES}))
        running.start()
        assert engine.started.wait(10)
        server.handle_exit(signal.SIGTERM, None)
        running.join(20)
        assert engine.aborted >= 1


def test_a_second_signal_stops_at_once():
    with serving(Script(hold=True)) as (_, server):
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        assert server.force_exit


def test_a_dead_engine_is_a_503_and_ends_the_server():
    engine = Script()
    app = create_app(engine, ServerSection(), RequestConfig(), context_length=512)
    engine.error = RuntimeError("gone")
    transport = httpx.ASGITransport(app)

    async def ask():
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            body = {"model": "script", "messages": MESSAGES}
            return [(await http.get(path)).status_code for path in ("/health", "/ready")] + [
                (await http.post("/v1/chat/completions", json=body)).status_code
            ]

    assert asyncio.run(ask()) == [503, 503, 503]
    server = Draining(app, engine, ServerSection())
    asyncio.run(server.on_tick(1))
    assert server.should_exit


def test_an_engine_thread_that_dies_fails_requests_and_says_so(tmp_path):
    engine = TransformersEngine(make_tiny_model(tmp_path / "m"), use_cpu=True)
    engine._runner.begin = lambda jobs: 1 / 0
    with pytest.raises(Exception, match="died"):
        engine.infer([InferRequest(MESSAGES)])
    assert isinstance(engine.error, ZeroDivisionError)
    with pytest.raises(Exception, match="died"):
        engine.infer([InferRequest(MESSAGES)])


# --- adapters by request ---


@pytest.mark.parametrize("path", ["../outside", "/etc", "link", "", ".", "missing", "a\0b"])
def test_adapters_are_loaded_from_one_folder_only(engine, tmp_path, path):
    root = tmp_path / "root"
    (tmp_path / "outside").mkdir()
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "root_evil").mkdir()
    with serving(engine, adapter_root=str(root), api_key="k") as (url, _):
        headers = {"authorization": "Bearer k"}
        found = httpx.post(f"{url}/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": path}, headers=headers)
        assert httpx.post(f"{url}/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "a"}).status_code == 401
    assert found.status_code in (400, 403) and str(tmp_path) not in found.text


def test_without_a_root_there_are_no_such_routes(real):
    assert post(real, {"lora_name": "x", "lora_path": "y"}, "/v1/load_lora_adapter").status_code == 404


def test_uvicorn_is_the_one_that_was_tried():
    assert hasattr(uvicorn.Server, "on_tick") and hasattr(uvicorn.Server, "handle_exit")
