"""Results of completions at several thread counts, as digests, from a process of its own."""

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
problem = low_rank_problem(700, 90, 3, oversampling=3.0, seed=1)
for name, options in {cases!r}.items():
    for n_threads in {n_threads!r}:
        result = complete(problem.observations, n_threads=n_threads, **options)
        digest = hashlib.sha256()
        for array in (result.left, result.right, result.singular_values, np.array(result.masked_rmse)):
            digest.update(np.ascontiguousarray(array).tobytes())
        for key, values in result.history.items():
            if key != "seconds":
                digest.update(values.tobytes())
        print(name, n_threads, digest.hexdigest())
"""


def check_bits_do_not_depend_on_threads(cases: dict[str, dict[str, object]]) -> None:
    """Complete one problem with each case's options on one to four threads: one digest a case.

    Names of cases hold no blanks.
    """
    environment = {
        **os.environ,
        "NUMBA_NUM_THREADS": str(max(N_THREADS)),
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    }
    script = _SCRIPT.format(cases=cases, n_threads=N_THREADS)
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    digests = defaultdict(set)
    lines = run.stdout.splitlines()
    for line in lines:
        name, _, digest = line.split()
        digests[name].add(digest)
    assert len(lines) == len(cases) * len(N_THREADS) and set(digests) == set(cases)
    assert all(len(found) == 1 for found in digests.values()), run.stdout
