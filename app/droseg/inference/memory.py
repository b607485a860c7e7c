"""How much memory is free, for deciding what may run beside what."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
"""Limit and use of the own container, version 2 and 1; a container sees the whole machine in /proc."""


def free_bytes() -> int:
    """Return what can still be allocated: of the machine, or of the container where that is less."""
    free = int(psutil.virtual_memory().available)
    for limit, used in CGROUPS:
        try:
            free = min(free, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # no such version, or "max": no limit
            continue
    return max(free, 0)
