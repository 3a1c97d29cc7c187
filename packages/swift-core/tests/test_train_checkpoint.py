"""Checkpoints are whole or absent."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from swift_core.config.sections import CheckpointSection
from swift_core.errors import CheckpointError
from swift_core.testing.children import in_children
from swift_core.train.checkpoint import clean, list_checkpoints, newest_valid, rotate, short_of_room, why_invalid, write_checkpoint
from swift_core.train.rundir import RunLock, find_resume_checkpoint, new_run_dir


def put(run_dir: Path, step: int, text: str = "weights") -> Path:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "model.safetensors").write_text(text)
        (folder / "sub" / "state.json").write_text(json.dumps({"step": step}))

    return write_checkpoint(run_dir, step, write)


def names(run_dir: Path) -> list[str]:
    return [folder.name for folder in list_checkpoints(run_dir)]


def test_a_checkpoint_is_valid_as_written(tmp_path: Path) -> None:
    folder = put(tmp_path, 10)
    assert folder == tmp_path / "checkpoint-10"
    assert why_invalid(folder) is None
    assert newest_valid(tmp_path) == (folder, [])


@pytest.mark.parametrize("name", ["model.safetensors", "sub/state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_any_damage_is_seen_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    good = put(tmp_path, 1)
    file = put(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[:-3])
    elif damage == "flip":
        data[2] ^= 1
        file.write_bytes(data)
    else:
        file.unlink()
    found, rejected = newest_valid(tmp_path)
    assert found == good
    assert rejected[0].folder.name == "checkpoint-2"
    assert name in rejected[0].reason


def test_no_bit_of_the_manifest_can_flip_unnoticed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 1, lambda folder: (folder / "a").write_text("b"))
    manifest = folder / "manifest.json"
    data = manifest.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(flipped)
        assert why_invalid(folder), bytes(flipped)
    manifest.write_bytes(data)
    assert why_invalid(folder) is None


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    put(tmp_path, 1)

    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(tmp_path, 2, fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1"]


def test_a_killed_write_is_no_checkpoint_and_is_swept(tmp_path: Path) -> None:
    put(tmp_path, 1)

    class Killed(BaseException):
        pass

    def die(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise Killed

    with pytest.raises(Killed):
        write_checkpoint(tmp_path, 2, die)
    assert names(tmp_path) == ["checkpoint-1"]
    clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1"]


def test_a_disk_without_room_for_another_checkpoint_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path, 1)
    assert short_of_room(folder) is None
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    assert "the next save will fail" in str(short_of_room(folder))


def test_writing_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    put(tmp_path, 3, "old")
    folder = put(tmp_path, 3, "new")
    assert (folder / "model.safetensors").read_text() == "new"
    assert why_invalid(folder) is None


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 10):
        put(tmp_path, step)
    rotate(tmp_path, keep=2, best=tmp_path / "checkpoint-1")
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4", "checkpoint-10"]
    rotate(tmp_path, keep=None, best=None)
    assert len(names(tmp_path)) == 3


def test_runs_get_folders_of_their_own(tmp_path: Path) -> None:
    section = CheckpointSection(output_dir=str(tmp_path))
    first = new_run_dir(section)
    first.mkdir()
    second = new_run_dir(section)
    assert first.name.startswith("v0-") and second.name.startswith("v1-")
    put(tmp_path / "plain", 1)
    with pytest.raises(CheckpointError, match="already holds checkpoints"):
        new_run_dir(CheckpointSection(output_dir=str(tmp_path / "plain"), add_version=False))


def test_resume_finds_runs_checkpoints_and_reasons(tmp_path: Path) -> None:
    put(tmp_path / "v0-x", 5)
    newest = put(tmp_path / "v1-x", 2)

    def find(wanted: Path | str) -> Path:
        return find_resume_checkpoint(CheckpointSection(output_dir=str(tmp_path), resume_from_checkpoint=str(wanted)))[0]

    assert find("true") == newest
    assert find(tmp_path / "v0-x").name == "checkpoint-5"
    assert find(newest) == newest
    (newest / "model.safetensors").write_text("")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has 0 bytes instead of 7"):
        find(newest)
    with pytest.raises(CheckpointError, match="holds no checkpoint-N folder"):
        find(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        find(tmp_path / "nowhere")


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (other,) = in_children([lambda: RunLock(tmp_path).__enter__() and None])
        assert other.code == 1 and f"in use by process {os.getpid()} on {socket.gethostname()}" in other.output
    assert not (tmp_path / "run.lock").exists()


def test_the_lock_of_a_killed_run_is_taken_over_though_its_number_is_in_use_again(tmp_path: Path) -> None:
    lock = tmp_path / "run.lock"

    def die() -> None:
        RunLock(tmp_path).__enter__()
        lock.write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
        os.kill(os.getpid(), signal.SIGKILL)

    (killed,) = in_children([die])
    assert killed.code == -signal.SIGKILL and lock.exists()
    with RunLock(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("{")
    start, done = multiprocessing.get_context("fork").Barrier(4), multiprocessing.get_context("fork").Barrier(4)

    def take() -> bool:
        start.wait(20)
        lock = RunLock(tmp_path)
        try:
            lock.__enter__()
        except CheckpointError:
            return False
        finally:
            done.wait(20)  # nobody lets go before all have tried
        return True

    assert [ended.value for ended in in_children([take] * 4)].count(True) == 1


def test_a_run_on_another_machine_keeps_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(CheckpointError, match=r"in use by process 1 on elsewhere.*delete .*run\.lock"), RunLock(tmp_path):
        pass
