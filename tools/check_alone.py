#!/usr/bin/env python3
"""Install each wheel by itself outside this folder and use it, as someone who installs one package from the index would.

For each case below: a fresh environment, the built wheels with the versions of uv.lock, then from a folder outside the checkout:
every module imports, `swift --help` lists the commands of the package and of swift-core and no others, each of them answers
`--help`, libraries that were not asked for are absent, and the package's unit tests pass from a copy.

Usage: python tools/check_alone.py [--no-tests] [PACKAGE...]
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from install import find_uv
from layout import ROOT, Member, clean_environment, members


@dataclass(frozen=True)
class Case:
    """One way to install a package.

    Attributes:
        dist: package to install.
        extras: its extras, separated by commas.
        absent: import names that must not come along.
        light_only: import the light zone only, since the libraries of the rest are in an extra.
        tests: run the package's unit tests there.
    """

    dist: str
    extras: str = ""
    absent: tuple[str, ...] = ()
    light_only: bool = False
    tests: bool = False


CASES = (
    Case("swift-core", absent=("torch", "transformers", "numpy", "peft", "gradio", "fastapi", "evalscope"), light_only=True),
    Case("swift-core", "torch", absent=("peft", "gradio", "fastapi", "evalscope"), tests=True),
    Case("swift-tuners", absent=("gradio", "fastapi", "evalscope"), tests=True),
    Case("swift-rlhf", absent=("peft", "gradio", "fastapi", "evalscope"), tests=True),
    Case("swift-infer", absent=("torch", "transformers", "peft", "gradio", "evalscope"), light_only=True),
    Case("swift-infer", "transformers,serve", absent=("peft", "gradio", "evalscope"), tests=True),
    Case("swift-eval", absent=("peft", "gradio"), tests=True),
    Case("swift-ui", absent=("torch", "transformers", "peft", "evalscope"), tests=True),
    Case("swift-stack", light_only=True),
)
# What the unit tests of a package need beside the package: the test runner, and clients that play the other side.
TEST_TOOLS = {"": ("pytest", "hypothesis"), "swift-infer": ("openai",)}

PROBE = r"""
import importlib, importlib.util, json, subprocess, sys

modules, siblings, absent, own = json.loads(sys.argv[1])
problems, failed = [], {}
for name in modules:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = error
for name in siblings + absent:
    if importlib.util.find_spec(name) is not None:
        problems.append(f"{name!r} can be imported, though nothing asked for it")
from swift_core.plugins import broken_plugins
from swift_core.registry import REGISTRIES
for registry in REGISTRIES.values():
    try:
        specs = list(registry)
    except Exception as error:
        problems.append(f"registry {registry.name}: {type(error).__name__}: {error}")
        continue
    for spec in specs:
        # A wrapper of a library that is not here: the entry says so and names the package to install.
        error = failed.get(spec.target.partition(":")[0])
        if isinstance(error, ImportError) and spec.install and spec.requires:
            print(f"   {spec.target}: not here, {error} ({registry.name} entry {spec.name!r}: pip install '{spec.install}')")
            del failed[spec.target.partition(":")[0]]
        if spec.source.partition(" ")[0] not in ("swift-core", *own):
            problems.append(f"{registry.name} entry {spec.name!r} comes from {spec.source!r}")
from swift_core.errors import MissingDependencyError
for name, error in list(failed.items()):
    # The adapter of an optional library, which says itself what to install.
    if isinstance(error, MissingDependencyError):
        print(f"   {name}: {error}")
        del failed[name]
problems += [f"import {name}: {type(error).__name__}: {error}" for name, error in failed.items()]
problems += [f"{where}: {why}" for where, why in broken_plugins().items()]
swift = sys.executable.replace("python", "swift")
overview = subprocess.run([swift, "--help"], capture_output=True, text=True)
if overview.returncode != 0:
    problems.append(f"swift --help exits {overview.returncode}: {overview.stderr.strip()[-300:]}")
for name in REGISTRIES["commands"].names():
    if f" {name} " not in overview.stdout:
        problems.append(f"swift --help does not list {name!r}")
    answer = subprocess.run([swift, name, "--help"], capture_output=True, text=True)
    if answer.returncode != 0 or not answer.stdout.strip():
        problems.append(f"swift {name} --help exits {answer.returncode}: {answer.stderr.strip()[-300:]}")
print(json.dumps([REGISTRIES["commands"].names(), problems]))
"""


def run(command: list[str], *, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command and capture what it says."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=clean_environment(**changes))


class Bench:
    """A folder outside the checkout with the built wheels in it."""

    def __init__(self, folder: Path, uv: str) -> None:
        self.folder = folder
        self.uv = uv
        self.members = {member.dist: member for member in members()}
        self.wheels: dict[str, Path] = {}
        self.constraints = folder / "constraints.txt"

    def build(self) -> None:
        """Build all wheels and write down which versions to install."""
        built = run([self.uv, "build", "--wheel", "--all-packages", "--out-dir", str(self.folder / "wheels"), "--quiet"], cwd=ROOT)
        if built.returncode != 0:
            raise SystemExit(f"the wheels do not build:\n{built.stderr}")
        for wheel in (self.folder / "wheels").glob("*.whl"):
            self.wheels[wheel.name.split("-")[0].replace("_", "-")] = wheel
        quiet = ["--no-hashes", "--no-header", "--no-annotate"]
        exported = run([self.uv, "export", "--frozen", "--all-packages", "--no-emit-workspace", *quiet], cwd=ROOT)
        if exported.returncode != 0:
            raise SystemExit(f"uv.lock cannot be read:\n{exported.stderr}")
        # Ours must come from the wheels just built, whatever an index holds under these names.
        ours = [f"{dist} @ {wheel.as_uri()}" for dist, wheel in self.wheels.items()]
        self.constraints.write_text("\n".join([exported.stdout, *ours]) + "\n", encoding="utf-8")

    def install(self, case: Case, home: Path) -> str | None:
        """Make the environment of a case; return what went wrong."""
        made = run([self.uv, "venv", "--quiet", "--python", sys.executable, str(home / "venv")], cwd=home)
        if made.returncode != 0:
            return made.stderr
        extras = f"[{case.extras}]" if case.extras else ""
        wanted = [f"{case.dist}{extras} @ {self.wheels[case.dist].as_uri()}"]
        if case.tests:
            wanted += [*TEST_TOOLS[""], *TEST_TOOLS.get(case.dist, ())]
        python = str(home / "venv" / "bin" / "python")
        done = run([self.uv, "pip", "install", "--quiet", "--python", python, "--constraints", str(self.constraints), *wanted], cwd=home)
        return done.stderr if done.returncode != 0 else None

    def probe(self, case: Case, home: Path) -> list[str]:
        """Use what was installed; return what is wrong with it."""
        core = self.members["swift-core"]
        # The meta-package has no modules; what it promises is that all the others are there.
        held = [self.members[case.dist]] if case.dist in self.members else list(self.members.values())
        names = set(core.light_modules())
        for member in held:
            names.update(member.light_modules() if case.light_only else member.modules())
        names = {name for name in names if not name.endswith("__main__")}
        siblings = [other.module for other in self.members.values() if other not in (core, *held)]
        question = json.dumps([sorted(names), siblings, case.absent, [member.dist for member in held]])
        answer = run([str(home / "venv" / "bin" / "python"), "-c", PROBE, question], cwd=home, HF_HUB_OFFLINE="1")
        if answer.returncode != 0:
            return [f"the probe died: {answer.stderr.strip()[-1500:]}"]
        *notes, last = answer.stdout.splitlines()
        commands, problems = json.loads(last)
        print("\n".join([*notes, f"   commands: {' '.join(commands)}"]))
        return problems

    def test(self, member: Member, home: Path) -> list[str]:
        """Run the unit tests from a copy; return what failed."""
        if not (member.folder / "tests").is_dir():
            return []
        shutil.copytree(member.folder / "tests", home / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        options = ["-q", "-m", "not e2e", "-p", "no:cacheprovider", "--import-mode=importlib", "-o", "markers=e2e", "-W", "ignore"]
        answer = run([str(home / "venv" / "bin" / "python"), "-m", "pytest", "tests", *options], cwd=home, HF_HUB_OFFLINE="1")
        tail = "\n".join(answer.stdout.strip().splitlines()[-25:])
        print(f"   tests: {answer.stdout.strip().splitlines()[-1] if answer.stdout.strip() else answer.stderr.strip()[-300:]}")
        return [] if answer.returncode in (0, 5) else [f"unit tests fail from a copy:\n{tail}"]


def main(words: list[str]) -> int:
    """Go through the cases; return 1 when one of them fails."""
    uv = find_uv()
    if uv is None:
        raise SystemExit("error: uv is not here (fix: run `make setup`)")
    named = {word for word in words if not word.startswith("-")}
    cases = [case for case in CASES if not named or case.dist in named]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="swift-alone-") as temporary:
        bench = Bench(Path(temporary), uv)
        bench.build()
        for case in cases:
            start = time.monotonic()
            label = case.dist + (f"[{case.extras}]" if case.extras else "")
            print(f"-- {label}", flush=True)
            home = bench.folder / label.replace(",", "-")
            home.mkdir()
            trouble = bench.install(case, home)
            installed = time.monotonic() - start
            problems = [f"cannot be installed:\n{trouble}"] if trouble else bench.probe(case, home)
            if case.tests and not trouble and "--no-tests" not in words:
                problems += bench.test(bench.members[case.dist], home)
            print("\n".join(f"   PROBLEM {problem}" for problem in problems) + ("\n" if problems else ""), end="")
            print(f"   {time.monotonic() - start:.0f} s, {installed:.0f} of them to install", flush=True)
            failed += bool(problems)
            shutil.rmtree(home)
    print(f"alone: {len(cases)} ways to install, {failed} with problems")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
