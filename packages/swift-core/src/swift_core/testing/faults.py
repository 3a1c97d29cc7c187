"""Faults of one process, each tried on a tiny model: killed saves, damaged files, full disks, interrupted stages."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from swift_core import Seq2SeqTrainer, Seq2SeqTrainingArguments, get_model_tokenizer
from swift_core.batching.encode import CHUNK, Encoder
from swift_core.config.sections import CheckpointSection
from swift_core.testing.children import Ended, in_children
from swift_core.testing.ranks import COMMON, largest_difference, make_samples
from swift_core.train import checkpoint
from swift_core.train.checkpoint import list_checkpoints, newest_valid, why_invalid
from swift_core.train.module import LossModule
from swift_core.train.report import read_log
from swift_core.train.rundir import LOCK, find_resume_checkpoint

STEPS = 6


@dataclass(frozen=True, slots=True)
class Trial:
    """One try of a fault.

    Attributes:
        detail: where or when it struck.
        survived: everything is as it should be.
        seen: what was found.
    """

    detail: str
    survived: bool
    seen: str = ""


class AtStep(TrainerCallback):
    """Does something at the end of a step, or at its beginning."""

    def __init__(self, step: int, act: Callable[[], object], *, begin: bool = False) -> None:
        self._step, self._act, self._begin = step, act, begin

    def on_step_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Act before step `step`."""
        if self._begin and state.global_step == self._step - 1:
            self._act()

    def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Act after step `step`, before it is saved."""
        if not self._begin and state.global_step == self._step:
            self._act()


def small_trainer(model: Path, out: Path, *, callbacks: Sequence[TrainerCallback] = (), **settings: Any) -> Seq2SeqTrainer:
    """Return a trainer of six steps over 1.2 epochs with dropout, which saves every second step."""
    loaded, tokenizer = get_model_tokenizer(model)
    assert loaded is not None
    for module in loaded.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2  # pyright: ignore[reportArgumentType]
    usual = {**COMMON, "max_steps": STEPS, "gradient_accumulation_steps": 2, "eval_strategy": "no"}
    arguments = Seq2SeqTrainingArguments(output_dir=str(out), **{**usual, **settings})
    return Seq2SeqTrainer(loaded, arguments, make_samples(), make_samples(5), tokenizer=tokenizer, callbacks=callbacks)


def resumes_equal(model: Path, run_dir: Path, whole: Path, **settings: Any) -> bool:
    """Resume a run and say whether its last weights are those of the run that nothing disturbed, bit for bit."""
    output = small_trainer(model, run_dir, **settings).train(resume_from_checkpoint=str(run_dir))
    assert output.last_checkpoint is not None
    return largest_difference(output.last_checkpoint, whole / f"checkpoint-{STEPS}") == 0


# ---- killed while saving ---------------------------------------------------------------------------------------------


def killed_saves(model: Path, folder: Path, *, tries: int = 20, seed: int = 0, resume_all: bool = True) -> list[Trial]:
    """Kill a process at random file operations of a save that replaces the checkpoint before it, and resume each time.

    Args:
        model: the tiny model.
        folder: where the runs go.
        tries: kills.
        seed: chooses the operations.
        resume_all: train on from each; else from each different checkpoint once, and look at the others.
    """
    whole = folder / "whole"
    points: list[int] = []

    def kill_copies() -> None:
        (counted,) = in_children([lambda: _save_until(trainer, _copied(whole, folder / "counted"), 0)])
        assert counted.value, counted.output
        points.extend(sorted(random.Random(seed).sample(range(1, counted.value + 1), tries)))
        works = [lambda point=point: _save_until(trainer, _copied(whole, folder / f"killed-{point}"), point) for point in points]
        codes = {ended.code for ended in in_children(works)}
        assert codes == {-signal.SIGKILL}, codes

    trainer = small_trainer(model, whole, save_total_limit=1, callbacks=[AtStep(4, kill_copies)])
    trainer.train()
    trials: list[Trial] = []
    seen: set[str] = set()
    for point in points:
        run_dir = folder / f"killed-{point}"
        found, _ = find_resume_checkpoint(CheckpointSection(resume_from_checkpoint=str(run_dir)))
        survived = why_invalid(found) is None
        if resume_all or found.name not in seen:
            survived = survived and resumes_equal(model, run_dir, whole, save_total_limit=1) and not list(run_dir.glob(".*"))
        seen.add(found.name)
        trials.append(Trial(f"file operation {point}", survived, f"went on from {found.name}"))
    return trials


def _copied(run_dir: Path, target: Path) -> Path:
    shutil.copytree(run_dir, target)
    return target


def _save_until(trainer: Seq2SeqTrainer, run_dir: Path, point: int) -> int:
    """Save into another folder, dying at a file operation; returns how many there are."""
    count = 0

    def hook(event: str, details: Any) -> None:
        nonlocal count
        if event == "open" or event.startswith(("os.", "shutil.")):
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer.run_dir = run_dir
    trainer._report = _Silent()  # pyright: ignore[reportAttributeAccessIssue]
    sys.addaudithook(hook)
    trainer._save()
    return count


class _Silent:
    def say(self, text: str) -> None: ...

    def plot(self) -> None: ...


# ---- damage and disks ------------------------------------------------------------------------------------------------


def damaged_files(run_dir: Path, *, seed: int = 0) -> list[Trial]:
    """Cut off and flip one bit of each file of the newest checkpoint in turn; the one before it must be found, and the file named."""
    chance, trials = random.Random(seed), list[Trial]()
    before, newest = list_checkpoints(run_dir)[-2:]
    for path in sorted(path for path in newest.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        place = chance.randrange(len(whole) * 8)
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        for damage, content in (("cut", whole[: chance.randrange(len(whole))]), ("one bit flipped", bytes(flipped))):
            path.write_bytes(content)
            found, rejected = newest_valid(run_dir)
            reason = rejected[0].reason if rejected else "nothing was noticed"
            # A hash that was changed in the manifest speaks of the file that it belongs to.
            named = path.name in reason or path.name == checkpoint.MANIFEST
            trials.append(Trial(f"{path.name} {damage}", found == before and named, reason))
        path.write_bytes(whole)
    return trials


@contextmanager
def small_disk(folder: Path, *, megabytes: int = 8) -> Iterator[Path]:
    """Give a disk of its own that is soon full.

    Raises:
        PermissionError: when this user may not mount one.
    """
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full_disk(model: Path, disk: Path, *, freed: bool) -> Trial:
    """Fill the disk of a run before its second save; space comes back before the last one, or never."""
    run_dir, ballast = disk / "run", disk / "ballast"

    def fill() -> None:
        size = sum(path.stat().st_size for path in (run_dir / "checkpoint-2").iterdir())
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - size // 2))

    def free() -> None:
        if freed:
            ballast.unlink()

    (ended,) = in_children(
        [lambda: small_trainer(model, run_dir, callbacks=[AtStep(3, fill), AtStep(5, free)]).train().global_step],
        timeout=300,
    )
    kept = [folder.name for folder in list_checkpoints(run_dir) if why_invalid(folder) is None]
    steps = [line["step"] for line in read_log(run_dir)]
    told = "checkpoint-4 could not be written" in ended.output and "training goes on" in ended.output
    good = kept == (["checkpoint-2", "checkpoint-6"] if freed else ["checkpoint-2"]) and ended.code == (0 if freed else 1)
    good = good and told and not (run_dir / LOCK).exists() and (not freed or steps == list(range(1, STEPS + 1)))
    return Trial(
        f"space comes back: {freed}", good, f"exit code {ended.code}, {', '.join(kept)}" + ("" if good else f"; {ended.output[-1500:]}")
    )


# ---- interrupted stages ----------------------------------------------------------------------------------------------

STAGES = ("data", "data in 2 processes", "model", "evaluation", "save")


def interrupted(
    command: Callable[[list[str]], int], model: Path, folder: Path, stage: str, number: signal.Signals = signal.SIGINT
) -> tuple[Trial, float]:
    """Send a signal to `swift sft` in the middle of a stage; returns what became of it and after how many seconds it was gone.

    Args:
        command: the `swift` command.
        model: the tiny model.
        folder: of data and run.
        stage: one of `STAGES`.
        number: the signal.
    """
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f'{{"query": "{n}?", "response": "{n}!"}}\n' for n in range(2 * CHUNK if stage.endswith("processes") else 8)))
    words = ["sft", "--model", model, "--dataset", rows, "--tuner_type", "full", "--use_cpu", "--max_steps", STEPS, "--save_steps", 2]
    words += ["--eval_steps", 2, "--split_dataset_ratio", 0.5, "--per_device_eval_batch_size", 1, "--report_to", "none"]
    words += ["--output_dir", folder / "run", "--add_version", "false", "--dataset_num_proc", 2 if stage.endswith("processes") else 1]
    reader, writer = os.pipe()
    sent: list[float] = []

    def work() -> int:
        _stop_in(stage, lambda: os.write(writer, f"{os.getpid()}\n".encode()))
        return command([str(word) for word in words])

    def strike(pids: Sequence[int]) -> None:
        if select.select([reader], [], [], 300)[0]:
            sent.append(time.monotonic())
            os.kill(pids[0], number)

    (ended,) = in_children([work], timeout=300, meanwhile=strike)
    seconds = time.monotonic() - sent[0] if sent else float("inf")
    os.close(writer)
    announced = {int(pid) for pid in os.read(reader, 65536).split()}
    os.close(reader)
    return _judged(stage, folder / "run", ended, number, [pid for pid in announced if Path(f"/proc/{pid}").exists()]), seconds


def _judged(stage: str, run_dir: Path, ended: Ended, number: int, left: list[int]) -> Trial:
    started = stage in ("evaluation", "save")
    kept = [folder.name for folder in list_checkpoints(run_dir) if why_invalid(folder) is None]
    code = ended.value if ended.value is not None else ended.code
    wanted = {128 + number} if started or number == signal.SIGINT else {128 + number, -number}
    good = code in wanted and kept == (["checkpoint-2"] if started else []) and not left and not (run_dir / LOCK).exists()
    seen = f"exit code {code}, saved: {', '.join(kept) or 'nothing'}, left over: {len(left)}"
    return Trial(f"{signal.Signals(number).name} in {stage}", good, seen if good else f"{seen}; {ended.output[-1500:]}")


def _stop_in(stage: str, announce: Callable[[], object]) -> None:
    """Make a stage of this process say that it has begun, and take its time."""
    owner, name, seconds = {
        "model": (PreTrainedModel, "from_pretrained", 60.0),
        "evaluation": (LossModule, "measure", 1.0),
        "save": (checkpoint, "seal", 0.5),
    }.get(stage, (Encoder, "encode", 60.0))
    usual = getattr(owner, name)

    def slow(*values: Any, **more: Any) -> Any:
        announce()
        threading.Event().wait(seconds)
        return usual(*values, **more)

    setattr(owner, name, slow)
