"""`swift doctor`: what this machine has, what is missing, and what to do about it; of a run, how it learns."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from swift_core.cli.findings import Finding, tell
from swift_core.cli.run_doctor import examine_run
from swift_core.errors import ConfigError, Problem
from swift_core.plugins import broken_plugins
from swift_core.registry import REGISTRIES

_OURS = ("swift-core", "swift-tuners", "swift-rlhf", "swift-infer", "swift-eval", "swift-ui")
_LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "safetensors",
    "deepspeed",
    "vllm",
    "sglang",
    "lmdeploy",
    "evalscope",
    "gradio",
)
_USAGE = "usage: swift doctor [run RUN_DIR] [--format text|json]\n"


def main(argv: Sequence[str]) -> int:
    """Print the report of this machine, or of a run; the exit code is 1 when something will not work."""
    words = list(argv)
    if words and words[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0
    form = "text"
    if "--format" in words[:-1]:
        place = words.index("--format")
        form = words.pop(place + 1)
        words.pop(place)
    of_run = len(words) == 2 and words[0] == "run"
    if form not in ("text", "json") or (words and not of_run):
        raise ConfigError([Problem(" ".join(argv), "is not understood", _USAGE.strip())])
    return tell(examine_run(Path(words[1])) if of_run else examine(), form)


def examine() -> list[Finding]:
    """Look at everything and return the findings in order."""
    return [_python(), *_packages(), *_libraries(), *_devices(), *_plugins(), *_space(), *_environment()]


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("ok" if good else "fail", "python", found, "" if good else "use Python 3.11, 3.12 or 3.13")


def _packages() -> list[Finding]:
    found = {name: number for name in _OURS if (number := _version(name)) is not None}
    lines = [Finding("ok", name, number) for name, number in found.items()]
    missing = [name for name in _OURS if name not in found]
    if missing:
        lines.append(Finding("note", "not installed", ", ".join(missing), f"pip install {' '.join(missing)}"))
    series = {number.rpartition(".")[0] for number in found.values()}
    if len(series) > 1:
        lines.append(
            Finding("fail", "versions", f"the swift packages are of different releases: {', '.join(sorted(series))}", "update all of them")
        )
    return lines


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _libraries() -> list[Finding]:
    lines: list[Finding] = []
    for name in _LIBRARIES:
        number = _version(name)
        if number is None:
            continue
        unmet = _unmet(name, number)
        lines.append(Finding("fail" if unmet else "ok", name, number, unmet))
    return lines


def _unmet(name: str, number: str) -> str:
    from packaging.requirements import Requirement

    for package in _OURS:
        if _version(package) is None:
            continue
        for text in requires(package) or []:
            requirement = Requirement(text)
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": "torch"})
            if requirement.name == name and wanted and not requirement.specifier.contains(number, prereleases=True):
                return f"{package} needs {name}{requirement.specifier}: pip install '{name}{requirement.specifier}'"
    return ""


def _devices() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return [Finding("note", "torch", "not installed: no training, no local models", "pip install 'swift-core[torch]'")]
    import torch

    from swift_core.models.dtype import cpu_has_bfloat16

    threads = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    lines = [Finding("ok", "cpu", f"{threads}, bfloat16 {'in hardware' if cpu_has_bfloat16() else 'emulated: float32 is faster'}")]
    if torch.accelerator.is_available():
        current = torch.accelerator.current_accelerator()
        kind = current.type if current is not None else "unknown"
        lines.append(Finding("ok", "accelerator", f"{torch.accelerator.device_count()} x {kind}"))
        if kind == "cuda":
            for index in range(torch.cuda.device_count()):
                memory = torch.cuda.mem_get_info(index)[1] / 2**30
                lines.append(Finding("ok", f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"))
    else:
        lines.append(Finding("note", "accelerator", "none found: everything runs on the CPU"))
    return lines


def _plugins() -> list[Finding]:
    for registry in REGISTRIES.values():
        registry.names()
    broken = broken_plugins()
    if not broken:
        return [Finding("ok", "plugins", f"{sum(len(registry.names()) for registry in REGISTRIES.values())} registry entries")]
    return [Finding("fail", "plugin", f"{name} fails: {why}", "update or uninstall that package") for name, why in broken.items()]


def _space() -> list[Finding]:
    from swift_core.hub.cache import cache_root

    lines: list[Finding] = []
    for what, path in (("free space here", Path.cwd()), ("free space in cache", cache_root())):
        existing = next(folder for folder in [path, *path.parents] if folder.exists())
        free = shutil.disk_usage(existing).free / 2**30
        low = free < 5
        lines.append(
            Finding("note" if low else "ok", what, f"{free:.0f} GiB in {existing}", "models and checkpoints need room" if low else "")
        )
    return lines


def _environment() -> list[Finding]:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "USE_HF", "SWIFT_CACHE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return [Finding("note", name, os.environ[name]) for name in names if name in os.environ]
