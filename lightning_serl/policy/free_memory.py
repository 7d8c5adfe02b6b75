"""The memory that a device has, and how much of it this process can still take."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

# A limit of a control group from here on means that there is none.
_NO_LIMIT = 2**60
# Smaller processes keep what they freed: taking it from the system again would slow them down.
_LARGE = 2**30


def free_memory(device: torch.device, processes: int = 1) -> tuple[int, int]:
    """Bytes that one of ``processes`` on this host can still take on a device, and the bytes that the device has.

    On a CPU these are the available memory of the host, or what its control group (a container, a batch system) leaves
    if that is less, divided among the processes; on a GPU its free memory, all of it for one process.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free, total
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _available(Path("/proc/meminfo"), total)
    for limit, used in _control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return free // max(1, processes), total


def resident_memory() -> int:
    """Bytes of memory that this process holds now, those of mapped files included; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back_memory() -> None:
    """Return what the C library keeps of freed memory to the system, in a process of more than 1 GiB.

    Called where the work changes, from writing to training and back: blocks of other sizes are needed then, and what
    is kept for the former ones would add to the peak. Does nothing without the C library of GNU.
    """
    if resident_memory() > _LARGE and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _available(meminfo: Path, total: int) -> int:
    """What Linux can give without swapping; elsewhere all memory."""
    try:
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return total


def _control_groups(groups: Path, root: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use) of this process's control group and those around it, of version 1 or 2, that have one."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        kinds, _, place = line.partition(":")[2].partition(":")
        if kinds == "":  # version 2
            folder, names = root / place.lstrip("/"), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            folder = root / "memory" / place.lstrip("/")
        else:
            continue
        while folder != root.parent:
            if (one := _limit(folder, *names)) is not None:
                found.append(one)
            folder = folder.parent
    return found


def _limit(folder: Path, limit: str, used: str, cache: str) -> tuple[int, int] | None:
    """Limit of a control group and the bytes in use; its cache of files, which it gives back, is not counted."""
    try:
        most = int((folder / limit).read_text())
        now = int((folder / used).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if most >= _NO_LIMIT else (most, max(0, now - int(statistics.get(cache, 0))))
    except (OSError, ValueError):  # no such file, or "max"
        return None
