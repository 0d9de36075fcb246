"""How much memory work may take: what people write (``512M``) to bytes, and a share of what is free.

Beside ``_checks``: imports only ``errors``. A budget covers arrays whose size the data decide; the interpreter,
libraries and names come on top. Not here: who keeps to it (``conversion``).
"""

from __future__ import annotations

import re
from pathlib import Path

from fastrfm.errors import InputError

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_WRITTEN = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SHARE = 4  # a quarter of what is free: factors come on top, and the disk cache wants some as well
_WITHOUT_ANSWER = 1 << 30
_CGROUP = Path("/sys/fs/cgroup")


def parse_memory(written: str | int) -> int:
    """Return a number of bytes from a number with or without unit; units are powers of 1024.

    Raises
    ------
    InputError
        If `written` is something else or not above 0.

    Examples
    --------
    >>> parse_memory("512M"), parse_memory("1.5 GiB"), parse_memory("4096")
    (536870912, 1610612736, 4096)
    """
    match = _WRITTEN.fullmatch(str(written).strip())
    n_bytes = int(float(match[1]) * 2 ** _UNITS[match[2].lower()]) if match else 0
    if n_bytes < 1:
        raise InputError(f"memory must be a number of bytes such as 512M or 2G, got {written!r}: give a size above 0")
    return n_bytes


def default_memory() -> int:
    """Return a quarter of the memory that is free: the machine's, or the container's where that is less."""
    free = free_memory()
    return max((_WITHOUT_ANSWER if free is None else free) // _SHARE, 1)


def free_memory() -> int | None:
    """Return the bytes that are free on the machine, or in the container where that is less; None if nobody says."""
    limit, used = _in_group("memory.max"), _in_group("memory.current")
    in_group = None if limit is None or used is None else max(limit - used, 0)
    return min((n for n in (_on_machine("MemAvailable:"), in_group) if n is not None), default=None)


def total_memory() -> int | None:
    """Return the bytes of memory of the machine, or of the container where that is less; None if nobody says."""
    return min((n for n in (_on_machine("MemTotal:"), _in_group("memory.max")) if n is not None), default=None)


def _on_machine(label: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(label)]
    return int(found[0][1]) * 1024 if found else None


def _in_group(name: str) -> int | None:
    try:
        return int((_CGROUP / name).read_text().strip())
    except (OSError, ValueError):  # no such file, or "max"
        return None
