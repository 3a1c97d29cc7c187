"""The server over a real socket, with the official client."""

import asyncio
import json
import threading
from contextlib import contextmanager

import httpx
import openai
import pytest
import uvicorn
from swift_core.errors import EngineError, LaunchError, RequestError
from swift_core.protocols import RequestConfig, TextDelta, Usage
from swift_core.testing.tiny import make_tiny_model
from swift_infer import InferRequest, TransformersEngine
from swift_infer.config import ServerSection
from swift_infer.server.app import create_app
from swift_infer.server.gate import PUBLIC_PATHS, KeyCheck
from swift_infer.server.serve import open_port

MESSAGES = [{"role": "user", "content": "Who are you?"}]
KEY = "k\u00e9y-1"


class Script:
    """Yields the pieces it was given; an exception among them is raised; `...` waits, once, until the request is aborted."""

    name = model_name = "script"

    def __init__(self, *pieces):
        self.pieces = pieces
        self.waiting = threading.Event()
        self.aborted = threading.Event()
        self.requests = []

    async def astream(self, request, config=None):
        self.requests.append((request, config))
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                if piece is not ...:
                    yield TextDelta(piece)
                elif not self.waiting.is_set():
                    self.waiting.set()
                    await asyncio.Event().wait()
            yield TextDelta("", 0, "stop", Usage(4, len(self.pieces)))
        finally:
            self.aborted.set()

    def close(self):
        pass


@contextmanager
def serving(engine, **settings):
    app = create_app(engine, ServerSection(**settings), RequestConfig(max_tokens=16, temperature=0), context_length=512)
    listener = open_port("127.0.0.1", 0)
    listener.listen()  # clients that come before the server is up wait
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield url, app
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def post(url, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{url}/v1/chat/completions", content=content, headers={"content-type": "application/json", **headers}, timeout=60)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = TransformersEngine(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"), use_cpu=True)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def real(engine):
    with serving(engine) as (url, _):
        yield url


@pytest.fixture(scope="module")
def scripted():
    with serving(Script("a"), api_key=KEY, max_messages=4, max_request_bytes=4096, max_n=3) as found:
        yield found


# --- the official client against the real engine ---


def test_client_gets_the_engines_answer(real, engine):
    found = client(real).chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=9, temperature=0)
    expected = engine.infer([InferRequest(MESSAGES)], RequestConfig(max_tokens=9, temperature=0))[0]
    assert found.choices[0].message.content == expected.choices[0].message.content
    assert found.choices[0].message.role == "assistant"
    assert (found.choices[0].finish_reason, found.object, found.model) == ("length", "chat.completion", "tiny")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (expected.usage.prompt_tokens, 9)
    assert found.usage.total_tokens == expected.usage.total_tokens


@pytest.mark.parametrize("include_usage", [False, True])
def test_stream_is_the_whole_answer_in_order(real, include_usage):
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 1.0, "seed": 5, "n": 2}
    whole = client(real).chat.completions.create(**asked)
    chunks = list(client(real).chat.completions.create(**asked, stream=True, **options))
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == whole.choices[index].message.content
        assert [choice.finish_reason for choice in mine][-1] == whole.choices[index].finish_reason
        assert all(choice.finish_reason is None for choice in mine[:-1])
    empty = [chunk for chunk in chunks if not chunk.choices]
    assert [chunk.usage for chunk in empty] == ([whole.usage] if include_usage else [])
    assert all(chunk.usage is None for chunk in chunks if chunk.choices)


def test_async_clients_take_turns(real):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{real}/v1", api_key="none", max_retries=0, timeout=60) as one:
            asked = [one.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=6, temperature=0) for _ in range(4)]
            return [found.choices[0].message.content for found in await asyncio.gather(*asked)]

    assert len(set(asyncio.run(main()))) == 1


def test_models_are_listed(real):
    (model,) = client(real).models.list().data
    assert (model.id, model.owned_by, model.model_extra) == ("tiny", "swift", {"max_model_len": 512})
    assert client(real).models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client(real).models.retrieve("other")


def test_a_prompt_over_the_context_is_a_400_with_numbers(real):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="512") as caught:
            client(real).chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 700}], stream=stream)
        assert caught.value.code == "context_length_exceeded"


# --- what requests may say ---


def test_request_fields_reach_the_engine():
    engine = Script("a")
    with serving(engine) as (url, _):
        messages = [{"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": " brief"}]}, *MESSAGES]
        body = {"model": "script", "messages": messages, "max_completion_tokens": 7, "max_tokens": 9, "stop": "x", "top_k": -1, "seed": -1}
        assert post(url, {**body, "user": "me", "a_new_field": {"b": 1}, "response_format": {"type": "text"}}).status_code == 200
    request, config = engine.requests[0]
    assert request.messages[0] == {"role": "system", "content": "be brief"}
    assert (config.max_tokens, config.stop, config.top_k, config.temperature, config.n) == (7, ("x",), 0, 0, 1)
    assert config.seed >= 0


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"model": None}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": MESSAGES * 5}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
            400,
            "messages.0.content",
        ),
        ({"n": 10**9}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"max_tokens": 10**12}, 400, "max_tokens"),
        ({"max_tokens": 513}, 400, "max_tokens"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"temperature": -0.1}, 400, "temperature"),
        ({"temperature": float("nan")}, 400, "temperature"),
        ({"stop": ["x"] * 17}, 400, None),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"logprobs": True}, 400, "logprobs"),
    ],
)
def test_bad_values_are_refused_in_the_openai_shape(scripted, change, status, param):
    url, _ = scripted
    found = post(url, {"model": "script", "messages": MESSAGES, **change}, authorization=f"Bearer {KEY}".encode())
    error = found.json()["error"]
    assert found.status_code == status
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert param is None or error["param"].startswith(param)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{cut", 400), (b"[" * 3000, 400), (b"[]", 400), (b"\xff\xfe\xfd", 400), (b" " * 5000, 413)],
)
def test_bodies_that_are_no_request(scripted, body, status):
    found = post(scripted[0], body, authorization=f"Bearer {KEY}".encode())
    assert (found.status_code, "message" in found.json()["error"]) == (status, True)


def test_a_body_without_length_is_counted_as_it_comes(scripted):
    def endless():
        for _ in range(64):
            yield b" " * 1024

    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}".encode()}
    assert httpx.post(f"{scripted[0]}/v1/chat/completions", content=endless(), headers=headers).status_code == 413


def test_only_json_is_read(scripted):
    found = post(
        scripted[0], {"model": "script", "messages": MESSAGES}, **{"content-type": "text/plain", "authorization": f"Bearer {KEY}".encode()}
    )
    assert (found.status_code, found.json()["error"]["param"]) == (400, "content-type")


# --- keys and names ---


def test_every_route_but_health_needs_the_key(scripted):
    url, app = scripted
    paths = [(method, route.path) for route in app.routes for method in route.methods]
    assert ("POST", "/v1/chat/completions") in paths
    for method, path in [*paths, ("GET", "/not/there"), ("OPTIONS", "/v1/models")]:
        found = httpx.request(method, url + path.replace("{model:path}", "script"))
        assert found.status_code == (200 if path in PUBLIC_PATHS else 401), path


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, "Bearer \u4f60", "Bearer " + "x" * 5000])
def test_wrong_keys_are_a_401(scripted, given):
    headers = {} if given is None else {"authorization": given.encode()}
    found = httpx.get(f"{scripted[0]}/v1/models", headers=headers)
    assert (found.status_code, found.json()["error"]["code"]) == (401, "invalid_api_key")
    assert KEY not in found.text


def test_the_right_key_opens(scripted):
    assert httpx.get(f"{scripted[0]}/v1/models", headers={"authorization": f"bearer {KEY}".encode()}).status_code == 200


def test_keys_are_compared_in_constant_time(monkeypatch):
    seen = []
    monkeypatch.setattr("swift_infer.server.gate.hmac.compare_digest", lambda a, b: seen.append((len(a), len(b))) or False)
    assert not KeyCheck(KEY).accepts(b"Bearer something much longer than the key")
    assert seen == [(32, 32)]


@pytest.mark.parametrize(("host", "status"), [("evil.example", 403), ("evil.example:8000", 403), ("localhost", 200), ("[::1]:1", 200)])
def test_without_a_key_only_names_of_this_machine_are_served(real, host, status):
    assert httpx.get(f"{real}/v1/models", headers={"host": host}).status_code == status


def test_a_taken_port_is_an_error_with_a_fix():
    first = open_port("127.0.0.1", 0)
    first.listen()
    try:
        with pytest.raises(LaunchError, match="in use") as caught:
            open_port("127.0.0.1", first.getsockname()[1])
        assert "--port" in (caught.value.fix or "") and caught.value.exit_code == 1
    finally:
        first.close()


# --- things that go wrong on the way ---


def test_bytes_of_a_stream():
    with serving(Script("你", "🐉", "\u2028", "\n\n")) as (url, _):
        raw = post(url, {"model": "script", "messages": MESSAGES, "stream": True}).content
    events = raw.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert all(event.startswith(b"data: ") for event in events[:-1])
    chunks = [json.loads(event[6:]) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "你🐉\u2028\n\n"
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize(
    ("error", "told"), [(EngineError("the cache is gone"), "the cache is gone"), (ValueError("/secret/path"), "server's log")]
)
def test_an_error_in_the_middle_of_a_stream_reaches_the_client(error, told):
    with serving(Script("a", "b", error)) as (url, _), pytest.raises(openai.APIError, match=told) as caught:
        list(client(url).chat.completions.create(model="script", messages=MESSAGES, stream=True))
    assert "/secret/path" not in str(caught.value)


@pytest.mark.parametrize(("error", "status"), [(EngineError("x"), 500), (ValueError("/secret/path"), 500), (RequestError("too long"), 400)])
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_piece_has_a_status(error, status, stream):
    with serving(Script(error)) as (url, _):
        found = post(url, {"model": "script", "messages": MESSAGES, "stream": stream})
    assert found.status_code == status
    assert "/secret/path" not in found.text and found.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pieces", [(...,), ("a", ...)])
def test_a_client_that_hangs_up_aborts_its_request_and_frees_the_engine(stream, pieces):
    engine = Script(*pieces)
    with serving(engine) as (url, app):
        with pytest.raises(openai.APITimeoutError):
            list(client(url).chat.completions.create(model="script", messages=MESSAGES, stream=stream, timeout=0.3))
        assert engine.aborted.wait(10)
        assert post(url, {"model": "script", "messages": MESSAGES}).status_code == 200
        assert (app.state.admission.running, app.state.admission.waiting) == (0, 0)


def test_a_client_that_hangs_up_leaves_the_queue():
    engine = Script("a", ...)
    with serving(engine) as (url, _):
        body = {"model": "script", "messages": MESSAGES}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**body, "stream": True}):
            assert engine.waiting.wait(10)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", json=body, timeout=0.3)
        assert post(url, body).status_code == 200
    assert len(engine.requests) == 2


def test_a_full_queue_answers_429_with_retry_after():
    engine = Script("a", ...)
    with serving(engine, max_queue=0) as (url, _):
        body = {"model": "script", "messages": MESSAGES}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**body, "stream": True}):
            assert engine.waiting.wait(10)
            found = post(url, body)
            assert httpx.get(f"{url}/health").status_code == 200
        assert (found.status_code, found.headers["retry-after"], found.json()["error"]["code"]) == (429, "1", "queue_full")
