"""The observed entries of a matrix, in memory.

Flow: arrays -> ``Observations`` -> row blocks (``blocks``) -> kernels. Rows are compressed (CSR): ``indptr`` int64,
``indices`` int32 (int64 beyond 2**31 columns), ``values`` float32 or float64; within a row columns ascend and are
unique. A stored zero is an observation. Not here: files (``store``, ``readers``) and anything that computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrfm import blocks
from fastrfm._checks import (
    check_finite,
    check_names,
    check_range,
    check_shape,
    check_weights,
    describe_duplicates,
    float_array,
    index_array,
    rises_in_rows,
)
from fastrfm._interrupt import check
from fastrfm.blocks import (
    EQUAL_WEIGHTS,
    Compressed,
    RowBlock,
    RowBlocks,
    TileBlock,
    index_dtype_for,
    runs,
    swap_axes,
    value_dtype_for,
)
from fastrfm.errors import InputError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix, spmatrix


@dataclass(frozen=True, eq=False)
class Observations(RowBlocks):
    """The observed entries of an (n_rows, n_cols) matrix, held in memory.

    Make one with :meth:`from_dense`, :meth:`from_coo`, :meth:`from_scipy` or :meth:`from_csr`: they check
    everything and never change or keep a writable hold on the caller's arrays.

    Attributes
    ----------
    shape : (int, int)
        n_rows, n_cols.
    indptr : (n_rows + 1,) int64
    indices : (n_observed,) int32 or int64
        Column numbers, ascending and unique within a row.
    values : (n_observed,) float32 or float64
    row_names, col_names : (n_rows,) and (n_cols,) object arrays of str, or None
    weights : (n_observed,) float64, or (0,)
        Of the entries' squared misfits, as inverse variances are; empty where all are one. See :meth:`with_weights`.

    Examples
    --------
    >>> import numpy as np
    >>> obs = Observations.from_dense(np.array([[1.0, np.nan], [0.0, 4.0]]))
    >>> obs.n_observed, obs.indices.tolist(), obs.values.tolist()
    (3, [0, 0, 1], [1.0, 0.0, 4.0])
    """

    shape: tuple[int, int]
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    row_names: np.ndarray | None = None
    col_names: np.ndarray | None = None
    weights: np.ndarray = field(default_factory=lambda: EQUAL_WEIGHTS)
    _blocks: dict[int, list[RowBlock]] = field(default_factory=dict, repr=False)

    # --- making -----------------------------------------------------------------------------------------------

    @classmethod
    def from_dense(cls, matrix: Any, *, row_names: Any = None, col_names: Any = None) -> Observations:
        """Take every entry of a 2-D array that is not NaN as observed.

        Parameters
        ----------
        matrix : (n_rows, n_cols) array_like of numbers
            NaN (or the mask of a masked array) marks a missing entry. float32 stays float32, everything else becomes
            float64.

        Raises
        ------
        InputError
            If the array is not 2-D, is empty, holds infinities, or is NaN everywhere.
        """
        if isinstance(matrix, np.ma.MaskedArray):  # what is masked is missing; plain numpy would take it as observed
            matrix = np.ma.filled(matrix.astype(value_dtype_for(matrix.dtype)), np.nan)
        array = float_array(matrix, "matrix")
        if array.ndim != 2:
            raise InputError(f"matrix must have 2 dimensions (rows, columns), got {array.ndim}: reshape it")
        observed = ~np.isnan(array)
        indptr = np.concatenate(([0], np.cumsum(observed.sum(axis=1), dtype=np.int64)))
        indices = np.nonzero(observed)[1]
        return cls.from_csr(indptr, indices, array[observed], array.shape, row_names=row_names, col_names=col_names)

    @classmethod
    def from_coo(
        cls,
        rows: Any,
        cols: Any,
        values: Any,
        shape: tuple[int, int] | None = None,
        *,
        row_names: Any = None,
        col_names: Any = None,
    ) -> Observations:
        """Take triples (row, column, value) in any order.

        Parameters
        ----------
        rows, cols : (n_observed,) array_like of int
            Zero-based positions.
        values : (n_observed,) array_like of float
        shape : (int, int), optional
            n_rows, n_cols; by default just large enough.

        Raises
        ------
        InputError
            If lengths differ, a position is negative, fractional or outside `shape`, a pair occurs twice, a value
            is NaN or infinite, or there is no triple at all.
        """
        rows, cols = index_array(rows, "rows"), index_array(cols, "cols")
        data = float_array(values, "values")
        if data.ndim != 1 or not rows.shape == cols.shape == data.shape:
            raise InputError(
                f"rows, cols and values must be 1-D and equally long, got {rows.shape}, {cols.shape} and {data.shape}"
            )
        if shape is None:
            if not rows.size:
                raise InputError("no observations: rows, cols and values are empty")
            shape = (int(rows.max()) + 1, int(cols.max()) + 1)
        n_rows, n_cols = check_shape(shape)
        check_range(rows, n_rows, "row")
        check_range(cols, n_cols, "column")
        import scipy.sparse

        # scipy sorts positions instead of values: if it has to merge any, a pair occurred twice.
        order = np.arange(1, data.size + 1)
        by_row = scipy.sparse.coo_matrix((order, (rows, cols)), shape=(n_rows, n_cols)).tocsr()
        if by_row.nnz < data.size:
            raise InputError(describe_duplicates(rows, cols))
        by_row.sort_indices()
        return cls.from_csr(
            by_row.indptr, by_row.indices, data[by_row.data - 1], shape, row_names=row_names, col_names=col_names
        )

    @classmethod
    def from_scipy(cls, matrix: spmatrix, *, row_names: Any = None, col_names: Any = None) -> Observations:
        """Take every stored entry of a scipy.sparse matrix or array, stored zeros included.

        Raises
        ------
        InputError
            As :meth:`from_coo`; also if `matrix` is not a 2-D scipy.sparse matrix.
        """
        import scipy.sparse

        if not scipy.sparse.issparse(matrix) or matrix.ndim != 2:
            raise InputError(f"from_scipy wants a 2-D scipy.sparse matrix, got {type(matrix).__name__}: use from_dense")
        if matrix.format == "csr" and matrix.has_canonical_format:
            csr: csr_matrix = matrix
            return cls.from_csr(csr.indptr, csr.indices, csr.data, csr.shape, row_names=row_names, col_names=col_names)
        coo = matrix.tocoo()  # keeps duplicates and stored zeros
        return cls.from_coo(coo.row, coo.col, coo.data, coo.shape, row_names=row_names, col_names=col_names)

    @classmethod
    def from_csr(
        cls,
        indptr: Any,
        indices: Any,
        values: Any,
        shape: tuple[int, int],
        *,
        row_names: Any = None,
        col_names: Any = None,
    ) -> Observations:
        """Take compressed rows; columns may come in any order within a row.

        Parameters
        ----------
        indptr : (n_rows + 1,) array_like of int
        indices : (n_observed,) array_like of int
        values : (n_observed,) array_like of float
        shape : (int, int)

        Raises
        ------
        InputError
            As :meth:`from_coo`; also if `indptr` does not start at 0, falls, or does not end at n_observed.
        """
        n_rows, n_cols = check_shape(shape)
        indptr = index_array(indptr, "indptr")
        indices = index_array(indices, "indices")
        data = float_array(values, "values")
        if indptr.shape != (n_rows + 1,):
            raise InputError(f"indptr must have n_rows + 1 = {n_rows + 1} entries, got shape {indptr.shape}")
        if indices.ndim != 1 or indices.shape != data.shape:
            raise InputError(f"indices and values must be 1-D and equally long, got {indices.shape} and {data.shape}")
        if indptr[0] != 0 or indptr[-1] != data.size or np.any(np.diff(indptr) < 0):
            raise InputError(f"indptr must rise from 0 to the number of values ({data.size})")
        if not data.size:
            raise InputError("no observations, every entry is missing: give at least one value")
        check_range(indices, n_cols, "column")
        check_finite(indptr, indices, data)
        if not rises_in_rows(indptr, indices).all():
            rows = np.repeat(np.arange(n_rows), np.diff(indptr))
            return cls.from_coo(rows, indices, data, (n_rows, n_cols), row_names=row_names, col_names=col_names)
        positions = np.array(indices, dtype=index_dtype_for((n_rows, n_cols)))
        arrays = np.array(indptr, dtype=np.int64), positions, np.array(data, order="C")
        names = check_names(row_names, n_rows, "row_names"), check_names(col_names, n_cols, "col_names")
        return cls((n_rows, n_cols), *arrays, *names)

    # --- looking ----------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64: how values are stored. All arithmetic on them is float64."""
        return self.values.dtype

    @property
    def is_weighted(self) -> bool:
        return self.weights.size > 0

    @property
    def entry_weights(self) -> np.ndarray:
        """(n_observed,) float64: the weights, ones where there are none."""
        return self.weights if self.is_weighted else np.ones(self.n_observed)

    def to_coo(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows (int64), cols and values, each (n_observed,), in row order."""
        return np.repeat(np.arange(self.n_rows), self.row_counts), self.indices, self.values

    # --- walking ----------------------------------------------------------------------------------------------

    def row_blocks(self, align: int = 1) -> Iterator[RowBlock]:
        if align not in self._blocks:
            spans = runs(self.indptr, blocks.BLOCK_ENTRIES, align)
            self._blocks[align] = [self._block(start, stop) for start, stop in spans]
        for block in self._blocks[align]:
            check()  # Ctrl-C
            yield block

    def tile_blocks(self, tiles: np.ndarray) -> Iterator[TileBlock]:
        check()
        yield TileBlock(slice(0, self.n_rows), 0, tiles, self.indptr, self.indices, self.values)

    def cols_of(self, row: int) -> np.ndarray:
        found: np.ndarray = self.indices[self.indptr[row] : self.indptr[row + 1]]
        return found

    def _block(self, start: int, stop: int) -> RowBlock:
        first, last = self.indptr[start], self.indptr[stop]
        parts = (array[first:last] for array in (self.indices, self.values, self.weights))  # none of no weights
        return RowBlock(start, stop, self.n_cols, Compressed(self.indptr[start : stop + 1] - first, *parts))

    # --- deriving ---------------------------------------------------------------------------------------------

    def transposed(self) -> Observations:
        """Return the same entries with rows and columns swapped."""
        swapped = swap_axes(Compressed(self.indptr, self.indices, self.values, self.weights), self.n_cols)
        arrays, names = (swapped.indptr, swapped.indices, swapped.values), (self.col_names, self.row_names)
        return Observations((self.n_cols, self.n_rows), *arrays, *names, swapped.weights)

    def shifted(self, offsets_at: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Observations:
        rows, cols, values = self.to_coo()
        return self.with_values(values - offsets_at(rows, cols))

    def with_values(self, values: np.ndarray) -> Observations:
        """Return the same positions with other values, (n_observed,) in row order."""
        arrays, names = (self.indptr, self.indices, values), (self.row_names, self.col_names)
        return Observations(self.shape, *arrays, *names, self.weights)

    def with_weights(self, weights: Any) -> Observations:
        """Return the same entries with weights of their squared misfits.

        Parameters
        ----------
        weights : (n_observed,) array_like of float above 0, in row order, or (n_rows, n_cols) array_like
            Of a matrix of weights the observed places are taken. A weight of 2 counts like the entry seen twice; with
            noise of known variances the weights are their inverses. They matter where a ridge trades misfit for rank,
            not where the entries are interpolated.

        Raises
        ------
        InputError
            If there are not as many weights as entries, or one is not a finite number above 0.

        Examples
        --------
        >>> import numpy as np
        >>> matrix = np.array([[1.0, np.nan], [2.0, 4.0]])
        >>> Observations.from_dense(matrix).with_weights([1.0, 1.0, 0.5]).weights.tolist()
        [1.0, 1.0, 0.5]
        """
        given = float_array(weights, "weights")
        if given.ndim == 2 and given.shape == self.shape:
            rows, cols, _ = self.to_coo()
            given = given[rows, cols]
        if given.shape != (self.n_observed,):
            raise InputError(
                f"weights must be one for each of the {self.n_observed} entries, in row order, or a matrix of shape "
                f"{self.shape}, got shape {given.shape}"
            )
        check_weights(given)
        given = EQUAL_WEIGHTS if np.all(given == 1.0) else np.array(given, dtype=np.float64)
        arrays, names = (self.indptr, self.indices, self.values), (self.row_names, self.col_names)
        return Observations(self.shape, *arrays, *names, given)

    def select(self, keep: np.ndarray) -> Observations:
        """Return the entries where the boolean mask `keep`, (n_observed,) in row order, is true; the shape stays.

        Raises
        ------
        InputError
            If nothing is kept.
        """
        kept = np.concatenate(([0], np.cumsum(keep, dtype=np.int64)))
        if not kept[-1]:
            raise InputError("no observations are selected: keep at least one")
        arrays, names = (kept[self.indptr], self.indices[keep], self.values[keep]), (self.row_names, self.col_names)
        return Observations(self.shape, *arrays, *names, self.weights[keep] if self.is_weighted else EQUAL_WEIGHTS)

    def split(self, share: float, *, random_state: int = 0) -> tuple[Observations, Observations]:
        """Divide the entries at random: (kept, held out).

        Parameters
        ----------
        share : float
            Share of the entries to hold out, above 0 and below 1; at least one entry is held out and one kept.
        random_state : int
            Seed; the first ``int(share * n_observed)`` entries of ``RandomState(seed).permutation(n_observed)``, in
            row order, are held out.

        Raises
        ------
        InputError
            If `share` is outside (0, 1) or leaves either side empty.
        """
        n_held = int(share * self.n_observed) if 0.0 < share < 1.0 else 0
        if not 0 < n_held < self.n_observed:
            raise InputError(
                f"the hold-out share must lie between 0 and 1 and leave entries on both sides, got {share!r} "
                f"of {self.n_observed} entries"
            )
        keep = np.ones(self.n_observed, dtype=bool)
        keep[np.random.RandomState(random_state).permutation(self.n_observed)[:n_held]] = False
        return self.select(keep), self.select(~keep)
