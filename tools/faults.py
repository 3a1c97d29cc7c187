"""Try the faults that a training run must survive, on a tiny model, and print the table.

    python tools/faults.py                 all of them
    python tools/faults.py killed disk     some, by name
    python tools/faults.py --tries 100     more kills in the middle of saves

Every try happens in processes of its own, which are copies of this one, so that they start at once. A full disk is a small
tmpfs, which needs root; without it that line says so. Exit code 1 when something was not survived.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from swift_core.cli.main import main as swift
from swift_core.testing import faults, rank_faults
from swift_core.testing.faults import Trial
from swift_core.testing.tiny import make_tiny_model


def killed(model: Path, folder: Path, tries: int) -> list[Trial]:
    """Kill -9 at random file operations of a save; each one is resumed and compared bit for bit."""
    return faults.killed_saves(model, folder, tries=tries)


def damaged(model: Path, folder: Path, tries: int) -> list[Trial]:
    """Newest checkpoint cut off, or one bit flipped, each file in turn; the one before is used and the file named."""
    faults.small_trainer(model, folder).train()
    return faults.damaged_files(folder)


def disk(model: Path, folder: Path, tries: int) -> list[Trial]:
    """Disk full while saving; the checkpoint before stays, the run goes on, and fails at its end if nothing changes."""
    found: list[Trial] = []
    for freed in (True, False):
        with faults.small_disk(folder.with_name(f"{folder.name}-{freed}")) as small:
            found.append(faults.full_disk(model, small, freed=freed))
    return found


def interrupted(model: Path, folder: Path, tries: int) -> list[Trial]:
    """SIGINT or SIGTERM in each stage of `swift sft`: gone soon, nothing left over, what was begun is saved."""
    found: list[Trial] = []
    folder.mkdir()
    for number in (signal.SIGINT, signal.SIGTERM):
        for stage in faults.STAGES:
            trial, seconds = faults.interrupted(swift, model, folder / f"{number.name}-{stage}", stage, number)
            found.append(Trial(trial.detail, trial.survived, f"{trial.seen}, gone after {seconds:.1f} s"))
    return found


def stopped(model: Path, folder: Path, tries: int) -> list[Trial]:
    """SIGTERM or SIGINT to one of two ranks: both save and leave with its code, and resume bit for bit (with dropout)."""
    folder.mkdir()
    cases = [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT)]
    found: list[Trial] = []
    for rank, number in cases:
        (folder / f"{number.name}-{rank}").mkdir()
        found.append(rank_faults.stopped_rank(model, folder / f"{number.name}-{rank}", rank, number))
    return found


def nan(model: Path, folder: Path, tries: int) -> list[Trial]:
    """NaN in the loss of one of two ranks: both stop before the update, with the samples named."""
    return [rank_faults.nonsense_of_a_rank(model, folder)]


def hung(model: Path, folder: Path, tries: int) -> list[Trial]:
    """One of two ranks hangs: the job ends in time and shows where it stands."""
    return [rank_faults.hung_rank(model, folder.with_name(f"{folder.name}-{holding}"), holding=holding) for holding in (False, True)]


def dead(model: Path, folder: Path, tries: int) -> list[Trial]:
    """One of two ranks is killed: the other one ends by itself and says why."""
    return [rank_faults.killed_rank(model, folder)]


FAULTS: dict[str, Callable[[Path, Path, int], list[Trial]]] = {
    each.__name__: each for each in (killed, damaged, disk, interrupted, stopped, nan, hung, dead)
}


def lines(trials: list[Trial], name: str, seconds: float, *, details: bool) -> Iterator[str]:
    """Yield the row of a fault, and what was seen of the tries that say something."""
    yield f"| {name} | {len(trials)} | {sum(trial.survived for trial in trials)} | {seconds:.0f} |"
    for trial in trials:
        if details or not trial.survived:
            yield f"    {'survived' if trial.survived else 'NOT SURVIVED'}: {trial.detail}: {trial.seen}"


def main() -> int:
    """Run what the words ask for and return the exit code."""
    parser = argparse.ArgumentParser(description="Try the faults that a training run must survive.")
    parser.add_argument("names", nargs="*", help=f"which ones, of {', '.join(FAULTS)}; default: all")
    parser.add_argument("--tries", type=int, default=20, help="kills in the middle of saves")
    parser.add_argument("--details", action="store_true", help="show every try")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in FAULTS]
    if unknown:
        parser.error(f"no fault is called {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    good = True
    print("| fault | tries | survived | seconds |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        model = make_tiny_model(Path(name) / "model")
        for fault in options.names or FAULTS:
            started = time.monotonic()
            try:
                with contextlib.redirect_stderr(Path(os.devnull).open("w", encoding="utf-8")):
                    trials = FAULTS[fault](model, Path(name) / fault, options.tries)
            except PermissionError as error:
                print(f"| {fault} | 0 | - | not tried: {error} |", flush=True)
                continue
            good = good and all(trial.survived for trial in trials)
            print("\n".join(lines(trials, fault, time.monotonic() - started, details=options.details)), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
