"""How much memory a device has, and how much of it is free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from swift_core.planner.record import Capacity

# Limits that containers set: version 2 and version 1 of control groups.
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
_CGROUP = Path("/sys/fs/cgroup")


def capacity_of(device: str, *, processes_here: int = 1) -> Capacity:
    """Return the memory of the device of one process.

    Args:
        device: kind of device.
        processes_here: processes that share the main memory of this machine.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info()
        return Capacity(torch.cuda.get_device_name(), total, free)
    total, free = _main_memory()
    limit = container_limit()
    if limit is not None:
        total, free = min(total, limit[0]), min(free, limit[1])
    name = "main memory" if kind == "cpu" else f"main memory, shared with {kind}"
    return Capacity(name, total // processes_here, free // processes_here)


def _main_memory() -> tuple[int, int]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # macOS gives the pages of other programs away when memory is short
        return total, total
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), total)
    return total, available


def container_limit(root: Path = _CGROUP) -> tuple[int, int] | None:
    """Return the bytes that a container may use and those it has left, or None where nothing limits it."""
    for limit, used, stat in _LIMITS:
        try:
            most, now = (root / limit).read_text(encoding="ascii").strip(), int((root / used).read_text(encoding="ascii"))
            pages = dict(line.split() for line in (root / stat).read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            continue
        if most == "max" or int(most) >= 2**60:
            return None
        # Pages of files are given back when memory is short.
        return int(most), int(most) - now + int(pages.get("inactive_file", 0)) + int(pages.get("active_file", 0))
    return None
