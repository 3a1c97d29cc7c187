#!/usr/bin/env python3
"""Check that the command line answers before anyone waits, and that it does so without torch.

The budget is processor time (user + system) of the quickest of several runs: what other programs do on the machine hardly
shows in it. The median of the wall clock is printed beside it.

Usage: python tools/check_import_time.py [--profile]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from layout import ROOT, clean_environment

RUNS = 7
# The budgets of the design are for a quiet machine of the last few years; a slow or shared one gets this much more.
SLACK = 1.6
HEAVY = ("torch", "transformers", "datasets", "gradio", "numpy", "peft")


@dataclass(frozen=True)
class Budget:
    """A command and the milliseconds it may take."""

    words: tuple[str, ...]
    milliseconds: int


BUDGETS = (
    Budget(("--help",), 150),
    Budget(("sft", "--help"), 400),
    Budget(("sft", "--model", "m", "--dataset", "d", "--print_config", "json"), 400),
)


def measure(words: tuple[str, ...]) -> tuple[float, float]:
    """Return milliseconds of processor time (best) and of wall clock (median) of a swift command."""
    command = [str(ROOT / ".venv" / "bin" / "swift"), *words]
    cpu: list[float] = []
    wall: list[float] = []
    for _ in range(RUNS):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=clean_environment(), cwd=ROOT)
        complaint = process.stderr.read() if process.stderr else b""
        _, status, usage = os.wait4(process.pid, 0)
        wall.append((time.perf_counter() - start) * 1000)
        cpu.append((usage.ru_utime + usage.ru_stime) * 1000)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"`swift {' '.join(words)}` exits {process.returncode}: {complaint.decode(errors='replace').strip()[-500:]}")
    return min(cpu), statistics.median(wall)


def heavy_modules(words: tuple[str, ...]) -> list[str]:
    """Return the heavy libraries that a swift command has loaded by the time it ends."""
    probe = (
        "import sys, io\n"
        "from swift_core.cli.main import main\n"
        "real, sys.stdout = sys.stdout, io.StringIO()\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"real.write(' '.join(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", probe, *words], capture_output=True, text=True, check=True, env=clean_environment(), cwd=ROOT
    )
    return answer.stdout.split()


def profile(words: tuple[str, ...], count: int = 12) -> None:
    """Print the imports of a swift command that take longest by themselves."""
    command = [sys.executable, "-X", "importtime", "-c", "import sys; from swift_core.cli.main import main; sys.exit(main())", *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment(), cwd=ROOT)
    rows: list[tuple[int, str]] = []
    for line in answer.stderr.splitlines():
        columns = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and columns[0].strip().isdigit():
            rows.append((int(columns[0]), columns[2].strip()))
    print(f"swift {' '.join(words)}: {len(rows)} modules, {sum(self_time for self_time, _ in rows) / 1000:.0f} ms")
    for self_time, name in sorted(rows, reverse=True)[:count]:
        print(f"  {self_time / 1000:7.1f} ms  {name}")


def main(words: list[str]) -> int:
    """Measure every budget; return 1 when one is exceeded or torch was loaded."""
    if "--profile" in words:
        for budget in BUDGETS:
            profile(budget.words)
        return 0
    slack = float(os.environ.get("SWIFT_IMPORT_TIME_SLACK", SLACK))
    failed = 0
    print(f"{'command':<60} {'cpu best':>9} {'wall median':>12} {'budget':>7}")
    for budget in BUDGETS:
        cpu, wall = measure(budget.words)
        heavy = heavy_modules(budget.words)
        over = cpu > budget.milliseconds * slack
        verdict = "too slow" if over else "over budget, within slack" if cpu > budget.milliseconds else ""
        if heavy:
            verdict = f"loads {', '.join(heavy)}"
        failed += bool(over or heavy)
        print(f"{'swift ' + ' '.join(budget.words):<60} {cpu:6.0f} ms {wall:9.0f} ms {budget.milliseconds:4d} ms  {verdict}".rstrip())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
