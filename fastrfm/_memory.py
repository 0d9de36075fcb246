"""How much memory to use: amounts as people write them, and what the machine has to spare.

Read by everything that works through data in blocks. Not here: what a block costs.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastrfm.errors import InputError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SHARE = 4  # the default is one part in so many of what is free
_LEAST = 2**26
_CGROUP = Path("/sys/fs/cgroup")


def parse_memory(text: str) -> int:
    """Return the bytes that an amount of memory stands for.

    Parameters
    ----------
    text : str
        A number, with K, M, G or T (times 1024, 1024², ...) after it, and B or iB if you like.

    Raises
    ------
    InputError
        If it is anything else, or less than one byte.

    Examples
    --------
    >>> parse_memory("512M"), parse_memory("1.5 GiB"), parse_memory("4096")
    (536870912, 1610612736, 4096)
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise InputError(f"memory must be a number of bytes such as 512M or 2G, got {text!r}")
    return size


def default_memory() -> int:
    """Return a quarter of the memory that is free, in bytes; never less than 64 MiB."""
    return max(_free_memory() // _SHARE, _LEAST)


def _free_memory() -> int:
    free = 2**32
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except OSError:
        return free  # not Linux: an amount that most machines have
    try:  # a container may have been given less
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, max(int(limit) - int(used), 0)) if limit != "max" else free
    except (OSError, ValueError):
        return free
