"""Whole numbers to codes 0, 1, 2, ... in order of first appearance, by a table with open addressing.

The table is (2^k, 2) int64: label, and code plus 1 (0 marks a free slot). A look-up starts at a mixed hash and goes
on slot by slot. Order of appearance is serial by nature; the caller runs the two axes in two threads.
"""

from __future__ import annotations

import numpy as np

from fastrfm._numba import inner

_LOW = (1 << 31) - 1


@inner
def _first_slot(label, n_slots):
    # Both products stay below 2^62: no overflow, compiled or interpreted.
    mixed = ((label & _LOW) * 1640531527) ^ (((label >> 31) & _LOW) * 1367130551)
    return (mixed ^ (mixed >> 15) ^ (mixed >> 31)) & (n_slots - 1)


@inner
def encode_labels(labels, start, table, n_used, first_code, fresh, codes):
    """Write the code of each label from place `start` on; new labels take the next codes.

    Parameters
    ----------
    labels : (n,) int64
    start : int
    table : (2^k, 2) int64, changed
    n_used : int
        Slots taken so far.
    first_code : int
        Code of the first new label.
    fresh : (n,) int64, written
        The new labels, in the order of their codes.
    codes : (n,) int64, written

    Returns
    -------
    (int, int)
        Where it stopped: at n, or earlier when the table was half full; and how many new labels there were.
    """
    n_slots = table.shape[0]
    n_fresh = 0
    for t in range(start, labels.size):
        label = labels[t]
        slot = _first_slot(label, n_slots)
        while table[slot, 1] != 0 and table[slot, 0] != label:
            slot = (slot + 1) & (n_slots - 1)
        if table[slot, 1] == 0:
            if 2 * (n_used + n_fresh + 1) > n_slots:
                return t, n_fresh
            table[slot, 0] = label
            table[slot, 1] = first_code + n_fresh + 1
            fresh[n_fresh] = label
            n_fresh += 1
        codes[t] = table[slot, 1] - 1
    return labels.size, n_fresh


@inner
def copy_table(table, out):
    """Enter all labels of a table into `out`, a larger one full of zeros."""
    n_slots = out.shape[0]
    for i in range(table.shape[0]):
        if table[i, 1] != 0:
            slot = _first_slot(table[i, 0], n_slots)
            while out[slot, 1] != 0:
                slot = (slot + 1) & (n_slots - 1)
            out[slot, 0] = table[i, 0]
            out[slot, 1] = table[i, 1]


@inner
def count_codes(codes, counts):
    """Add 1 to ``counts[code]`` for each code; counts is int64."""
    for t in range(codes.size):
        counts[codes[t]] += np.int64(1)
