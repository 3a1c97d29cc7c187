#!/usr/bin/env python3
"""Set this checkout up on a fresh machine: get uv when it is absent, then install everything from the lock into `.venv`.

Runs on any Python 3.8 or newer with nothing but the standard library. Running it again when all is in place takes a moment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
# The version that made uv.lock; any from OLDEST_UV on reads it (tried).
PINNED_UV = "0.13.9"
OLDEST_UV = (0, 9, 0)
PYTHONS = ">=3.11,<3.14"


def uv_version(uv: str) -> tuple[int, ...] | None:
    """Return the version of a uv executable, or None when it does not run."""
    try:
        answer = subprocess.run([uv, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return None
    found = re.match(r"uv (\d+)\.(\d+)\.(\d+)", answer.stdout)
    return tuple(int(part) for part in found.groups()) if found else None


def find_uv() -> str | None:
    """Return a uv that can read the lock: the user's own, else the one in `.tools`, else None."""
    candidates = [shutil.which("uv"), str(TOOLS / "bin" / "uv"), str(TOOLS / "site" / "bin" / "uv")]
    for candidate in candidates:
        if candidate is not None:
            version = uv_version(candidate)
            if version is not None and version >= OLDEST_UV:
                return candidate
    return None


def get_uv() -> str:
    """Install uv into `.tools`, with whichever of Python's own installers this machine has, and return its path."""
    requirement = f"uv=={PINNED_UV}"
    print(f"uv is not installed (or older than {'.'.join(map(str, OLDEST_UV))}): getting {requirement} into {TOOLS.name}/", flush=True)
    venv_pip = [str(TOOLS / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement]
    plain_pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(TOOLS / "site"), "--upgrade", requirement]
    attempts = [
        # A virtual environment is clean of the system's packages, but Debian ships venv without ensurepip.
        [[sys.executable, "-m", "venv", str(TOOLS)], venv_pip],
        # `--target` writes nothing outside the folder; an externally managed Python still wants the flag.
        [plain_pip],
        [[*plain_pip, "--break-system-packages"]],
    ]
    said: list[str] = []
    for attempt in attempts:
        failed = next((text for command in attempt if (text := run_quietly(command)) is not None), None)
        uv = find_uv()
        if failed is None and uv is not None:
            return uv
        said.append(failed or "it was installed but does not run")
    shutil.rmtree(TOOLS, ignore_errors=True)
    reasons = "\n".join(f"  - {text}" for text in said)
    raise SystemExit(
        f"error: uv could not be installed:\n{reasons}\n"
        "fix: install uv (https://docs.astral.sh/uv) or pip (such as `apt-get install python3-venv python3-pip`) and run this again"
    )


def run_quietly(command: list[str]) -> str | None:
    """Run a command; return None when it succeeded, else the last line that it wrote."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return None
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.strip()]
    return f"{' '.join(command[1:4])}: {lines[-1].strip() if lines else f'exit code {answer.returncode}'}"


def main() -> int:
    """Install everything; return the exit code."""
    uv = find_uv() or get_uv()
    command = [uv, "sync", "--frozen", "--all-packages", "--group", "dev", "--quiet"]
    # A virtual environment that happens to be active is not ours to fill.
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")}
    if not (ROOT / ".venv").is_dir():
        print("installing Python packages from uv.lock into .venv (the first time downloads about 3 GB, most of it torch)", flush=True)
    answer = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if answer.returncode == 0:
        return 0
    found = subprocess.run([uv, "python", "find", "--no-project", PYTHONS], cwd=ROOT, capture_output=True, check=False)
    if found.returncode != 0:
        print(
            "error: no Python 3.11, 3.12 or 3.13 is on this machine and uv could not download one\n"
            "fix: install one of them (for example `apt-get install python3.12`) and run this again",
            file=sys.stderr,
        )
    return answer.returncode


if __name__ == "__main__":
    sys.exit(main())
