"""Labels of one axis to codes in order of first appearance, and at the end to positions and names.

Between the records of ``triples`` and a matrix. The rule: if all labels of an axis are whole numbers, positions go by
number; else by first appearance. That is known at the end only, so codes come first and ``finish`` maps them. Every
label stays in memory: in a dict, or, where blocks of numbers come, in the table of ``kernels.label_codes``.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from fastrfm.readers.layout import is_whole

_FIRST_SLOTS = 1 << 12


class AxisLabels:
    """The labels seen so far; ``n`` is their number, which is also the next code."""

    def __init__(self) -> None:
        self.n = 0
        self._words: dict[str, int] = {}
        self._numbers: list[np.ndarray] = []  # in order of their codes
        self._n_numbers = 0
        self._table: np.ndarray | None = None

    def encode(self, labels: Any) -> np.ndarray:
        """Return the (n,) int64 codes of labels: an int64 array, or a list of str in which 7 is the same label."""
        if isinstance(labels, np.ndarray):
            return self._encode_numbers(labels)
        if self._table is not None:
            return self._encode_mixed(labels)
        words = self._words
        codes = np.array([words.setdefault(label, len(words)) for label in labels], dtype=np.int64)
        self.n = len(words)
        return codes

    def finish(self) -> tuple[np.ndarray, np.ndarray | list[str]]:
        """Return the (n,) int64 position of each code and the names by position: int64 ascending, or str."""
        if not self._n_numbers and not all(map(is_whole, self._words)):
            return np.arange(self.n), list(self._words)
        numbers = np.concatenate(self._numbers) if self._numbers else np.array(list(self._words), dtype=np.int64)
        if self._n_numbers and self._words:
            taken = np.fromiter(self._words.values(), dtype=np.int64)
            is_number = np.ones(self.n, dtype=bool)
            is_number[taken] = False
            names = np.empty(self.n, dtype=object)
            names[taken] = list(self._words)
            names[is_number] = [str(number) for number in numbers.tolist()]
            return np.arange(self.n), names.tolist()
        order = np.argsort(numbers)
        positions = np.empty(self.n, dtype=np.int64)
        positions[order] = np.arange(self.n)
        return positions, numbers[order]

    def _encode_mixed(self, labels: list[str]) -> np.ndarray:
        """Encode each different label once, in order, numbers in the table and words in the dict."""
        local: dict[str, int] = {}
        places = [local.setdefault(label, len(local)) for label in labels]
        codes: list[int] = []
        for whole, group in groupby(local, key=is_whole):
            if whole:
                codes.extend(self._encode_numbers(np.array([int(label) for label in group], dtype=np.int64)).tolist())
                continue
            for label in group:
                code = self._words.setdefault(label, self.n)
                self.n += code == self.n
                codes.append(code)
        return np.array(codes, dtype=np.int64)[places]

    def _encode_numbers(self, labels: np.ndarray) -> np.ndarray:
        from fastrfm.kernels.label_codes import copy_table, encode_labels

        if self._table is None:
            self._start_table()
        codes, fresh = np.empty(labels.size, dtype=np.int64), np.empty(labels.size, dtype=np.int64)
        at = 0
        while True:
            at, n_fresh = encode_labels(labels, at, self._table, self._n_numbers, self.n, fresh, codes)
            if n_fresh:
                self._numbers.append(fresh[:n_fresh].copy())
            self._n_numbers += n_fresh
            self.n += n_fresh
            if at == labels.size:
                return codes
            larger = np.zeros((4 * len(self._table), 2), dtype=np.int64)  # type: ignore[arg-type]
            copy_table(self._table, larger)
            self._table = larger

    def _start_table(self) -> None:
        """Begin the table; whole numbers that came as words before move into it, with their codes."""
        words, self._words, self.n = list(self._words), {}, 0
        self._table = np.zeros((_FIRST_SLOTS, 2), dtype=np.int64)
        if words:
            self._encode_mixed(words)


def names_of(names: np.ndarray | list[str]) -> list[str]:
    """Return names as text."""
    return [str(number) for number in names.tolist()] if isinstance(names, np.ndarray) else names
