"""Every engine that runs here passes the same checks."""

import threading
from contextlib import contextmanager

import pytest
import uvicorn
from swift_core.protocols import Engine, RequestConfig, WeightEngine
from swift_core.testing.tiny import make_tiny_model
from swift_infer import TransformersEngine
from swift_infer.config import ServerSection
from swift_infer.engines.client import InferClient
from swift_infer.engines.structured import available
from swift_infer.server.app import create_app
from swift_infer.server.serve import open_port
from swift_infer.testing.conformance import CHECKS, ConformanceError, check, generates


@contextmanager
def served(engine):
    app = create_app(engine, ServerSection(), RequestConfig(), context_length=engine.context_length)
    listener = open_port("127.0.0.1", 0)
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def transformers_engine(tmp_path_factory):
    engine = TransformersEngine(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"), use_cpu=True)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engines(transformers_engine):
    with served(transformers_engine) as url:
        client = InferClient(url, retries=0)
        yield {"transformers": transformers_engine, "client": client}
        client.close()


# What each cannot do, said here so that a capability that gets lost is noticed.
LACKS = {
    "transformers": {"adapters", *(() if available() else {"structured output"})},
    "client": {"token ids", "prompt logprobs", "abort", "adapters", "pause and sleep"},
}


@pytest.mark.parametrize("kind", ["transformers", "client"])
@pytest.mark.parametrize("name", CHECKS)
def test_engine_keeps_the_protocol(engines, kind, name):
    if name == "structured output" and not available():
        pytest.skip("llguidance is not installed")
    assert check(name, engines[kind]) == ("not supported" if name in LACKS[kind] else "passed")


def test_the_types_fit(engines):
    assert all(isinstance(engine, Engine) for engine in engines.values())
    assert isinstance(engines["transformers"], WeightEngine) and not isinstance(engines["client"], WeightEngine)


def test_the_kit_notices_an_engine_that_mixes_answers_up(transformers_engine):
    class Mixed:
        def infer(self, requests, config=None):
            return transformers_engine.infer(sorted(requests, key=lambda one: one.messages[0]["content"]), config)

    with pytest.raises(ConformanceError):
        generates(Mixed())
