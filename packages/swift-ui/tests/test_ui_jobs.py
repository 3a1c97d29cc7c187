"""Jobs: real child processes, their states, and what is left after a restart of the server."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import yaml
from swift_core.errors import LaunchError
from swift_ui.chart import curve, read_log, series
from swift_ui.i18n import Texts
from swift_ui.jobs import JobManager, process_identity, tail
from swift_ui.pages.jobs import job_table

WAITS = """
import json, pathlib, signal, sys
def end(*_):
    pathlib.Path(sys.argv[1]).write_text(json.dumps({"exit_code": 143}))
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("waiting", flush=True)
signal.pause()
"""


def _until(condition, *, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)  # another process has to do something; there is nothing to wait on
    raise AssertionError("it did not happen in time")


def _waiting(monkeypatch) -> None:
    """Let jobs run a program that waits for SIGTERM instead of training."""
    real = subprocess.Popen

    def popen(argv, **options):
        assert isinstance(argv, list) and not options.get("shell") and options["start_new_session"]
        return real([sys.executable, "-c", WAITS, argv[3]], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)


def test_a_command_that_fails_is_recorded_with_its_exit_code_and_words(tmp_path):
    manager = JobManager(tmp_path)
    job = manager.start("sft", {"model": "m", "dataset": ["d"], "max_steps": "many"}, name="x; touch y", secrets={"hub_token": "hf_canary"})
    secrets = job.folder / "secrets.yaml"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    written = yaml.safe_load((job.folder / "run.yaml").read_text(encoding="utf-8"))
    assert written["output_dir"] == str(job.run_folder) and written["add_version"] is False
    ended = _until(lambda: (now := manager.get(job.id)).status != "running" and now)
    assert (ended.status, ended.exit_code) == ("failed", 2)
    assert "'many' is refused" in tail(ended.log_file)
    assert not secrets.exists()
    left = "".join(path.read_text(encoding="utf-8", errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert "hf_canary" not in left


def test_stop_reaches_a_job_after_a_restart_of_the_server(tmp_path, monkeypatch):
    _waiting(monkeypatch)
    job = JobManager(tmp_path).start("sft", {})
    _until(lambda: "waiting" in tail(job.log_file))
    later = JobManager(tmp_path)
    assert later.get(job.id).status == "running"
    assert later.stop(job.id).status in ("stopping", "stopped")
    ended = _until(lambda: (now := later.get(job.id)).status == "stopped" and now)
    assert ended.exit_code == 143 and ended.ended is not None


def test_a_killed_job_is_lost_and_is_not_stopped_again(tmp_path, monkeypatch):
    _waiting(monkeypatch)
    manager = JobManager(tmp_path)
    job = manager.start("sft", {})
    _until(lambda: "waiting" in tail(job.log_file))
    os.kill(job.pid, signal.SIGKILL)
    assert _until(lambda: (now := manager.get(job.id)).status == "lost" and now).ended is not None
    assert manager.stop(job.id).status == "lost"


def test_a_reused_pid_is_never_signalled(tmp_path, monkeypatch):
    _waiting(monkeypatch)
    manager = JobManager(tmp_path)
    job = manager.start("sft", {})
    _until(lambda: "waiting" in tail(job.log_file))
    with manager._connect() as connection:
        connection.execute("UPDATE jobs SET identity = 'someone else' WHERE id = ?", (job.id,))
    other = JobManager(tmp_path)  # not the parent: it knows the process by pid and start only
    assert other.stop(job.id).status == "lost"
    assert process_identity(job.pid) is not None
    manager._children[job.id].kill()
    manager._children[job.id].wait()


def test_a_deleted_list_does_not_read_old_folders(tmp_path, monkeypatch):
    (tmp_path / "jobs" / "0001").mkdir(parents=True)
    (tmp_path / "jobs" / "0001" / "exit.json").write_text('{"exit_code": 0}')
    _waiting(monkeypatch)
    manager = JobManager(tmp_path)
    job = manager.start("sft", {})
    assert job.folder.name == "0001-1" and job.status == "running" and job.name == "sft-1"
    manager._children[job.id].kill()
    manager._children[job.id].wait()
    with pytest.raises(LaunchError, match="no job 9"):
        manager.get(9)


def test_identity_is_of_the_process_not_of_the_number():
    assert process_identity(os.getpid()) == process_identity(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    _until(lambda: process_identity(child.pid) is None)  # a zombie until it is waited for
    child.wait()


def test_table_escapes_names(tmp_path, monkeypatch):
    _waiting(monkeypatch)
    manager = JobManager(tmp_path)
    job = manager.start("sft", {}, name="<script>alert(1)</script>")
    manager._children[job.id].kill()
    manager._children[job.id].wait()
    shown = job_table(manager.all(), None, Texts("zh"))
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "状态" in shown
    assert "还没有任务" in job_table([], None, Texts("zh"))


def test_tail_shows_the_end_as_a_terminal_would(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(("first\n" + "x" * 100 + "\n10%\r50%\r100%\nlast é").encode())
    assert tail(file, most_bytes=60).split("\n") == ["100%", "last é"]
    assert tail(file).startswith("first\n") and tail(tmp_path / "absent") == ""


def test_curves_leave_out_what_is_no_number(tmp_path):
    file = tmp_path / "logging.jsonl"
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0}, {"step": 4, "loss": float("nan")}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo', encoding="utf-8")
    points = series(read_log(file), "loss")
    assert points == [(1.0, 2.0), (3.0, 1.0)]
    drawn = curve("Loss <1>", points, empty="none")
    assert 'points="62.0,14.0 408.0,144.0"' in drawn and "Loss &lt;1&gt;<b>1</b>" in drawn
    assert "none" in curve("Loss", [], empty="none")
    near = curve("Loss", [(1.0, 6.2264), (2.0, 6.2220)], empty="none")
    assert all(f">{mark}<" in near for mark in ("6.22640", "6.22420", "6.22200"))
    flat = curve("Loss", [(1.0, 0.0)], empty="none")
    assert "nan" not in flat
    long = curve("Loss", [(float(step), float(step)) for step in range(5000)], empty="none")
    assert long.count(",") < 700 and 'cx="408.0"' in long
