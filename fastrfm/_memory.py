"""How much memory a step may use: sizes as people write them, and a default from what the machine has left.

Used by whatever works in blocks (``outputs``) and by the command's ``--memory``; knows nothing of the package but its
errors.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastrfm.errors import InputError

_SIZE = re.compile(r"(\d+)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_FALLBACK = 1 << 30  # bytes, where the system does not say


def parse_memory(text: str) -> int:
    """Return a size in bytes: digits, then K, M, G or T (powers of 1024), perhaps with B or iB, in any case.

    Raises
    ------
    InputError
        If `text` is something else, or zero.

    Examples
    --------
    >>> parse_memory("4096"), parse_memory("512M"), parse_memory("2 GiB")
    (4096, 536870912, 2147483648)
    """
    match = _SIZE.fullmatch(text.strip())
    size = 0 if match is None else int(match[1]) * 1024 ** _POWERS[(match[2] or "").lower()]
    if size < 1:
        raise InputError(f"memory must be a size such as 512M or 2G (K, M, G, T or plain bytes), got {text!r}")
    return size


def default_memory() -> int:
    """Return a quarter of the memory that is free, in bytes; of the control group's limit where that is lower."""
    limits = [*_available(), *_group_limits()]
    return min(limits, default=4 * _FALLBACK) // 4


def _available() -> list[int]:
    lines = _read(Path("/proc/meminfo")).splitlines()
    return [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]


def _group_limits() -> list[int]:
    """Return the limits of this process's control group, version 1 or 2, and of the root that a container sees."""
    found = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, kinds, group = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        home, name = (
            ("/sys/fs/cgroup", "memory.max") if not kinds else ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        )
        found += [_read(Path(home + folder) / name).strip() for folder in {group.rstrip("/"), ""}]
    return [int(limit) for limit in found if limit.isdigit()]  # "max" stands for none


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
