"""A server in a process of its own: started, watched, stopped; here a small program plays its part."""

import os
import sys

import pytest
from swift_core.config.sections import ModelSection
from swift_core.errors import EngineError
from swift_core.testing.tiny import make_tiny_model
from swift_infer.config import EngineConfig
from swift_infer.engines.server_process import ServerProcess, free_port, serve_command

PROGRAM = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
print("the server is up", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def test_it_starts_when_ready_and_is_gone_after_stop():
    port = free_port()
    server = ServerProcess([sys.executable, "-c", PROGRAM, str(port)], url=f"http://127.0.0.1:{port}/health", timeout=60)
    assert server.error is None and "the server is up" in server.tail()
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)
    assert not server.log.exists()


@pytest.mark.parametrize(
    ("program", "told"), [("raise SystemExit('no such model')", "no such model"), ("import time; time.sleep(60)", "in time")]
)
def test_one_that_does_not_come_up_tells_the_end_of_its_log(program, told):
    with pytest.raises(EngineError, match=told):
        ServerProcess([sys.executable, "-c", program], url=f"http://127.0.0.1:{free_port()}/health", timeout=2)


def test_flags_of_vllm(tmp_path):
    folder = make_tiny_model(tmp_path / "m")
    loading = ModelSection(model=str(folder), adapters=["a=/x"], torch_dtype="bfloat16")
    settings = {"tensor_parallel_size": 2, "enable_prefix_caching": True, "enforce_eager": False, "speculative_config": {"method": "ngram"}}
    command = serve_command("python3", EngineConfig(loading=loading), 8123, settings)
    assert command[:5] == ["python3", "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
    assert {"--port=8123", "--dtype=bfloat16", "--tensor-parallel-size=2", "--enable-prefix-caching"} <= set(command)
    assert '--speculative-config={"method": "ngram"}' in command and not any("enforce" in word or "trust" in word for word in command)
    assert command[-3:] == ["--enable-lora", "--lora-modules", "a=/x"]
