"""Splitting rows among threads: pure numpy, used by every parallel kernel.

A kernel loops ``for task in prange(bounds.size - 1)`` and owns rows ``bounds[task]:bounds[task + 1]``. The bounds
depend on the data alone, never on the thread count, so neither do the bits of a result.
"""

from __future__ import annotations

import numpy as np

N_TASKS = 64  # enough for load balance on many cores, few enough that a task outweighs its own start


def balanced_bounds(cost: np.ndarray, n_tasks: int = N_TASKS) -> np.ndarray:
    """Return row bounds that split `cost` into at most `n_tasks` runs of about equal sum.

    Parameters
    ----------
    cost : (n_rows,) array
        Non-negative work per row, any unit.
    n_tasks : int
        Number of runs wanted.

    Returns
    -------
    (n_tasks + 1,) int64
        Non-decreasing, from 0 to n_rows; equal neighbours are empty runs.
    """
    total = np.cumsum(cost, dtype=np.float64)
    if total.size == 0:
        return np.zeros(2, dtype=np.int64)
    n_tasks = min(n_tasks, total.size)
    wanted = total[-1] * np.arange(1, n_tasks) / n_tasks
    inside = np.searchsorted(total, wanted, side="left") + 1
    return np.concatenate(([0], np.minimum(inside, total.size), [total.size])).astype(np.int64)
