"""Results of completions as digests, from processes of their own: for thread counts, and kernels compiled or loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
N_THREADS = (1, 2, 3, 4)

# Prints one line for each case and thread count: a digest of everything that a result holds but its times.
_SCRIPT = """
import hashlib, warnings
import numpy as np
from problems import low_rank_problem
from fastrfm.solvers.completion import complete
warnings.simplefilter("ignore")
problem = low_rank_problem({shape}, 3, oversampling=3.0, seed=1)
weights = np.random.default_rng(0).uniform(0.5, 2.0, problem.observations.n_observed)
for name, options in {cases!r}.items():
    is_weighted = options.pop("is_weighted", False)
    observations = problem.observations.with_weights(weights) if is_weighted else problem.observations
    for n_threads in {n_threads!r}:
        result = complete(observations, n_threads=n_threads, **options)
        digest = hashlib.sha256()
        for array in (result.left, result.right, result.singular_values, np.array(result.masked_rmse)):
            digest.update(np.ascontiguousarray(array).tobytes())
        for key, values in result.history.items():
            if key != "seconds":
                digest.update(values.tobytes())
        print(name, n_threads, digest.hexdigest())
"""


Cases = dict[str, dict[str, object]]


def check_bits_do_not_depend_on_threads(cases: Cases) -> None:
    """Complete one problem with each case's options on one to four threads: one digest a case.

    Names of cases hold no blanks.
    """
    digests = defaultdict(set)
    lines = _lines(cases, "700, 90", N_THREADS)
    for line in lines:
        name, _, digest = line.split()
        digests[name].add(digest)
    assert len(lines) == len(cases) * len(N_THREADS) and set(digests) == set(cases)
    assert all(len(found) == 1 for found in digests.values()), lines


def check_bits_do_not_depend_on_compiling(cases: Cases, folder: Path) -> None:
    """Complete one problem in a process that compiles the kernels and in one that loads them from `folder`."""
    compiled, loaded = (_lines(cases, "300, 70", (1,), NUMBA_CACHE_DIR=str(folder)) for _ in range(2))
    assert len(compiled) == len(cases)
    assert compiled == loaded


def _lines(cases: Cases, shape: str, n_threads: tuple[int, ...], **environment: str) -> list[str]:
    """Return a line for each case and thread count: name, thread count, digest."""
    environment = {
        **os.environ,
        "NUMBA_NUM_THREADS": str(max(N_THREADS)),
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        **environment,
    }
    script = _SCRIPT.format(cases=cases, n_threads=n_threads, shape=shape)
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()
