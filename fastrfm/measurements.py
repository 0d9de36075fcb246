"""Linear measurements of a matrix, y_i = ⟨A_i, X⟩, of three kinds behind one interface: what ``solvers.low_rank`` sees.

``StackMeasurements`` holds the A_i as an array (n, n_rows, n_cols), in memory or in a file, and works on blocks of it;
``RankOneMeasurements`` holds A_i = u_i v_iᵀ as two tables and never forms one; ``OperatorMeasurements`` calls a
``scipy.sparse.linalg.LinearOperator``. Sums run over blocks of a fixed size and are added in their order, so that any
number of threads gives the same bits; BLAS itself is held at one thread (``_numba.thread_limit``). Not here: checks of
what users give (``measurement_inputs``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fastrfm._checks import check_plain
from fastrfm._interrupt import check
from fastrfm._numba import current_threads
from fastrfm.errors import InputError

BLOCK_BYTES = 64 << 20
_N_BLOCKS, _MUCH = 8, 10**6  # blocks, at least, from that many numbers on: they are shared among threads
_MATRIX_VECTOR = 8.0  # time of a multiplication where each number is used once, beside a matrix product
_ADJOINT = 1e-3  # share by which the two ways of an operator may contradict: float32 rounds to less
_N_PROBES = 8  # random vectors that tell the scale of an operator


class Measurements:
    """What all kinds offer; arrays are float64.

    Attributes
    ----------
    shape : (int, int, int)
        (n, n_rows, n_cols).
    square_sum : float
        Σ ‖A_i‖_F², the trace of 𝒜𝒜*.
    pass_cost, gram_cost, direction_cost : float
        About how long 𝒜 and 𝒜* once, a Gram, and the products for one pair of directions take, in multiplications of a
        matrix product.
    """

    shape: tuple[int, int, int]
    square_sum: float
    _blocks: list[slice]

    @property
    def pass_cost(self) -> float:
        return 2.0 * _MATRIX_VECTOR * math.prod(self.shape)

    @property
    def gram_cost(self) -> float:
        return 0.5 * self.shape[0] * math.prod(self.shape)

    @property
    def direction_cost(self) -> float:
        return float(self.shape[0] * sum(self.shape[1:]))

    def _mapped(self, function: Callable[[slice], Any]) -> Iterator[Any]:
        """Yield what `function` makes of each block, in their order; numpy lets other threads run as it multiplies."""
        n_threads = min(current_threads(), len(self._blocks))
        if n_threads == 1 or math.prod(self.shape) < _MUCH:
            for block in self._blocks:
                check()
                yield function(block)
            return
        with ThreadPoolExecutor(n_threads) as pool:
            yield from pool.map(function, self._blocks)
        check()

    def forward(self, matrix: np.ndarray) -> np.ndarray:
        """Return 𝒜X, (n,), from X (n_rows, n_cols)."""
        raise NotImplementedError

    def forward_factors(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return 𝒜(left rightᵀ), (n,)."""
        return self.forward(left @ right.T)

    def adjoint(self, dual: np.ndarray) -> np.ndarray:
        """Return 𝒜*(a) = Σ a_i A_i, (n_rows, n_cols)."""
        raise NotImplementedError

    def gram(self, rows: np.ndarray | None, cols: np.ndarray | None) -> np.ndarray:
        """Return ⟨A_i, (R Rᵀ) A_j (C Cᵀ)⟩, (n, n), symmetric; R (n_rows, ·) and C (n_cols, ·) are I where None."""
        raise NotImplementedError

    def products(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return leftᵀ A_i right for all i, (n, l · r), from (n_rows, l) and (n_cols, r)."""
        raise NotImplementedError


class StackMeasurements(Measurements):
    """An array (n, n_rows, n_cols) of float32 or float64, read in blocks of at most `block_bytes` as float64."""

    def __init__(self, stack: Any, block_bytes: int = BLOCK_BYTES) -> None:
        self.stack = stack
        self.shape = (int(stack.shape[0]), int(stack.shape[1]), int(stack.shape[2]))
        n, n_rows, n_cols = self.shape
        most = max(1, block_bytes // (8 * n_rows * n_cols))
        self._blocks = _slices(n, min(most, _shared(self.shape)))
        self.square_sum = float(sum(self._mapped(self._square_sum)))

    def forward(self, matrix: np.ndarray) -> np.ndarray:
        flat = matrix.ravel()
        return np.concatenate(list(self._mapped(lambda rows: self._flat(rows) @ flat)))

    def adjoint(self, dual: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape[1] * self.shape[2])
        for part in self._mapped(lambda rows: dual[rows] @ self._flat(rows)):
            out += part
        return out.reshape(self.shape[1:])

    def gram(self, rows: np.ndarray | None, cols: np.ndarray | None) -> np.ndarray:
        n = self.shape[0]
        out = np.empty((n, n))
        row_weights = None if rows is None else rows @ rows.T
        col_weights = None if cols is None else cols @ cols.T

        def fill(block: slice) -> None:
            weighted = self._flat(block).reshape(-1, *self.shape[1:])
            weighted = weighted if row_weights is None else np.matmul(row_weights, weighted)
            weighted = weighted if col_weights is None else weighted @ col_weights
            flat = weighted.reshape(block.stop - block.start, -1)
            for other in self._blocks:
                if other.start <= block.start:
                    out[block, other] = flat @ self._flat(other).T

        for _ in self._mapped(fill):
            pass
        _mirror(out, self._blocks)
        return out

    def products(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        def part(block: slice) -> np.ndarray:
            stack = self._flat(block).reshape(-1, *self.shape[1:])
            return np.asarray(np.matmul(left.T, stack @ right).reshape(block.stop - block.start, -1))

        return np.concatenate(list(self._mapped(part)))

    def flat_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield which measurements, and them as rows of n_rows · n_cols numbers."""
        for block in self._blocks:
            check()
            yield block, self._flat(block)

    def _flat(self, block: slice) -> np.ndarray:
        part = np.asarray(self.stack[block], dtype=np.float64)
        return np.asarray(part.reshape(len(part), -1))

    def _square_sum(self, block: slice) -> float:
        flat = self._flat(block)
        total = float(np.vdot(flat, flat))
        if not np.isfinite(total):
            bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
            reason = f"measurement {block.start + bad[0]} holds NaN or infinity" if bad.size else "they are too large"
            raise InputError(f"measurements must be finite: {reason}, leave it out or scale it down")
        return total


class RankOneMeasurements(Measurements):
    """Measurements u_iᵀ X v_i by pairs of vectors, of which no n_rows x n_cols matrix is ever formed.

    Parameters
    ----------
    left : (n, n_rows) array_like
        u_i.
    right : (n, n_cols) array_like
        v_i.

    Attributes
    ----------
    left, right : (n, n_rows) and (n, n_cols) float64
    shape : (int, int, int)
        (n, n_rows, n_cols).

    Raises
    ------
    InputError
        If they are not tables of finite real numbers with as many rows.

    Examples
    --------
    >>> pairs = RankOneMeasurements([[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    >>> pairs.shape, len(pairs[:1])
    ((2, 2, 3), 1)
    >>> pairs.forward(np.arange(6.0).reshape(2, 3)).tolist()
    [2.0, 3.0]
    """

    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = _table(left, "left"), _table(right, "right")
        if len(self.left) != len(self.right):
            raise InputError(
                f"left and right must hold as many vectors, got {len(self.left)} and {len(self.right)}: "
                "measurement i is left[i] @ X @ right[i]"
            )
        self.shape = (len(self.left), self.left.shape[1], self.right.shape[1])
        squares = [np.einsum("ij,ij->i", table, table) for table in (self.left, self.right)]
        self.square_sum = float(squares[0] @ squares[1])
        self._blocks = _slices(len(self.left), _shared(self.shape))

    @property
    def pass_cost(self) -> float:
        return 2.0 * math.prod(self.shape)

    @property
    def gram_cost(self) -> float:
        return 0.5 * self.shape[0] ** 2 * sum(self.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: Any) -> RankOneMeasurements:
        """Return the measurements chosen by a slice, an array of positions or a mask."""
        return RankOneMeasurements(np.atleast_2d(self.left[chosen]), np.atleast_2d(self.right[chosen]))

    def __repr__(self) -> str:
        n, n_rows, n_cols = self.shape
        return f"RankOneMeasurements({n} of a {n_rows} x {n_cols} matrix)"

    def forward(self, matrix: np.ndarray) -> np.ndarray:
        def part(block: slice) -> np.ndarray:
            return np.asarray(np.einsum("ij,ij->i", self.left[block] @ matrix, self.right[block]))

        return np.concatenate(list(self._mapped(part)))

    def forward_factors(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.asarray(np.einsum("ij,ij->i", self.left @ left, self.right @ right))

    def adjoint(self, dual: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape[1:])
        for part in self._mapped(lambda b: self.left[b].T @ (dual[b, None] * self.right[b])):
            out += part
        return out

    def gram(self, rows: np.ndarray | None, cols: np.ndarray | None) -> np.ndarray:
        left = self.left if rows is None else self.left @ rows
        right = self.right if cols is None else self.right @ cols
        out = np.empty((self.shape[0], self.shape[0]))

        def fill(block: slice) -> None:
            until = slice(0, block.stop)  # a Hadamard product of two Grams
            np.matmul(left[block], left[until].T, out=out[block, until])
            out[block, until] *= right[block] @ right[until].T

        for _ in self._mapped(fill):
            pass
        _mirror(out, self._blocks)
        return out

    def products(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        out = np.empty((self.shape[0], left.shape[1], right.shape[1]))
        np.multiply((self.left @ left)[:, :, None], (self.right @ right)[:, None, :], out=out)
        return out.reshape(self.shape[0], -1)


class OperatorMeasurements(Measurements):
    """A LinearOperator from X, row by row in one vector, to the n measurements.

    Parameters
    ----------
    operator : scipy.sparse.linalg.LinearOperator
        (n, n_rows * n_cols); ``matvec`` and ``rmatvec`` are called, ``matmat`` for `products`.
    shape : (int, int)
    random_state : int
        Of the probes that estimate `square_sum`.
    block_bytes : int
    """

    def __init__(
        self, operator: Any, shape: tuple[int, int], random_state: int, block_bytes: int = BLOCK_BYTES
    ) -> None:
        self.operator, self._block_bytes = operator, block_bytes
        self.shape = (int(operator.shape[0]), *shape)
        rng = np.random.default_rng(random_state)
        probes = rng.choice([-1.0, 1.0], size=(_N_PROBES, self.shape[0]))
        # E‖𝒜*z‖² over random signs z is the trace of 𝒜𝒜*.
        self.square_sum = float(np.mean([np.square(self.adjoint(probe)).sum() for probe in probes]))
        if not np.isfinite(self.square_sum):
            raise InputError("rmatvec of the LinearOperator returns NaN or infinity: its entries must be finite")
        seen = self.adjoint(probes[0])
        square = float(np.vdot(seen, seen))
        if not abs(float(probes[0] @ self.forward(seen)) - square) <= _ADJOINT * square:
            raise InputError("rmatvec of the LinearOperator is not the adjoint of its matvec: check both")

    @property
    def direction_cost(self) -> float:
        return float(math.prod(self.shape))

    def forward(self, matrix: np.ndarray) -> np.ndarray:
        check()
        return _real(self.operator.matvec(np.ascontiguousarray(matrix).reshape(-1)), "matvec")

    def adjoint(self, dual: np.ndarray) -> np.ndarray:
        try:
            image = self.operator.rmatvec(dual)
        except NotImplementedError as error:
            raise InputError("the LinearOperator has no rmatvec: give it the adjoint of its matvec") from error
        return _real(image, "rmatvec").reshape(self.shape[1:])

    def products(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        n, n_rows, n_cols = self.shape
        out = np.empty((n, left.shape[1], right.shape[1]))
        step = max(1, self._block_bytes // (8 * n_rows * n_cols * max(1, right.shape[1])))
        for block in _slices(left.shape[1], step):
            check()
            basis = left[:, None, block, None] * right[None, :, None, :]
            columns = _real(self.operator.matmat(basis.reshape(n_rows * n_cols, -1)), "matmat")
            out[:, block, :] = columns.reshape(n, -1, right.shape[1])
        return out.reshape(n, -1)

    def as_stack(self) -> StackMeasurements:
        """Return the same measurements as an array, from one ``rmatvec`` for each."""
        n = self.shape[0]
        stack, unit = np.empty(self.shape), np.zeros(n)
        for i in range(n):
            unit[i] = 1.0
            stack[i] = self.adjoint(unit)
            unit[i] = 0.0
        return StackMeasurements(stack, self._block_bytes)


def _shared(shape: tuple[int, int, int]) -> int:
    """Return how many measurements a block has for work to be shared among threads; all where there is little."""
    return max(1, -(-shape[0] // _N_BLOCKS)) if math.prod(shape) >= _MUCH else shape[0]


def _slices(n: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _mirror(gram: np.ndarray, blocks: list[slice]) -> None:
    """Copy what is below the diagonal to what is above, block by block."""
    for block in blocks:
        gram[: block.start, block] = gram[block, : block.start].T
        corner = gram[block, block]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T


def _table(given: Any, name: str) -> np.ndarray:
    check_plain(given, name)
    array = np.asarray(given)
    try:
        array = np.ascontiguousarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers: {error}") from None
    if array.ndim != 2 or not array.size:
        raise InputError(f"{name} must be a table of vectors, one in each row, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InputError(f"{name} must be finite, but row {row} holds NaN or infinity: leave that measurement out")
    return array


def _real(found: Any, what: str) -> np.ndarray:
    array = np.asarray(found)
    if array.dtype.kind == "c":
        raise InputError(f"{what} of the LinearOperator returns complex numbers: measurements must be real")
    return array.astype(np.float64, copy=False)
