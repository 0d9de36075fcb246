"""Four float64 at a time, for loops as long as a rank: too short for the vectors a compiler makes by itself.

Such loops run over 5 to 40 numbers, where LLVM's own vectors of 16 leave most of the work to scalar remainders; sweeps
written with these run at twice the speed. Arrays are padded with zeros to a multiple of four columns
(:func:`padded`), so no loop has a remainder. A value of ``Lanes`` lives in one register (two on machines without
256-bit vectors) and exists only inside kernels.

Interpreted (``NUMBA_DISABLE_JIT=1``) and with ``FASTRFM_CHECK_BOUNDS=1`` the same names work on tuples of four floats.
The compiled forms check no bounds, take C-contiguous float64 arrays and no negative index. A kernel's disk cache does
not see this file: empty ``NUMBA_CACHE_DIR`` after editing it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils, errors
from numba.extending import intrinsic, models, register_model

from fastrfm._numba import CHECKS_BOUNDS, inner

LANES = 4
_FLAGS = ("reassoc", "contract", "nsz")
_FLOAT, _INDEX, _PLACE = ir.DoubleType(), ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)


def padded_width(k: int) -> int:
    """Return k rounded up to a multiple of four."""
    return -(-k // LANES) * LANES


def padded(matrix: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """Return an (n, k) or (k,) array as C-contiguous float64 with its last axis filled up to a multiple of four.

    An array that is so already is returned itself.
    """
    k = matrix.shape[-1]
    if k == padded_width(k) and matrix.dtype == np.float64 and matrix.flags.c_contiguous:
        return matrix
    out = np.full((*matrix.shape[:-1], padded_width(k)), fill)
    out[..., :k] = matrix
    return out


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


_LANES_TYPE = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, indices: Any, index_types: Any) -> Any:
    """Return where four numbers start: element [a] of a 1-d array, [i, a] of a 2-d one."""
    struct = cgutils.create_struct_proxy(array_type)(context, builder, value=array)
    wide = [context.cast(builder, index, kind, types.intp) for index, kind in zip(indices, index_types, strict=True)]
    offset = wide[-1]
    if len(wide) == 2:
        width = builder.extract_value(struct.shape, 1)
        offset = builder.add(builder.mul(wide[0], width, flags=("nsw",)), offset, flags=("nsw",))
    return builder.bitcast(builder.gep(struct.data, [offset], inbounds=True), _VECTOR.as_pointer())


def _check(array: Any, n_indices: int) -> None:
    is_good = isinstance(array, types.Array) and array.layout == "C" and array.dtype == types.float64
    if not is_good or array.ndim != n_indices:
        raise errors.TypingError(f"lanes take C-contiguous float64 arrays with an index for each axis, got {array}")


def _shuffled(builder: Any, one: Any, other: Any, places: list[int]) -> Any:
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_PLACE, len(places)), places))


def _emit_load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    place = _pointer(context, builder, signature.args[0], args[0], args[1:], signature.args[1:])
    return builder.load(place, align=8)


def _emit_store(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    place = _pointer(context, builder, signature.args[0], args[0], args[1:-1], signature.args[1:-1])
    builder.store(args[-1], place, align=8)
    return context.get_dummy_value()


@intrinsic
def _load(typingctx, array, a):  # type: ignore[no-untyped-def]
    _check(array, 1)
    return _LANES_TYPE(array, a), _emit_load


@intrinsic
def _load_at(typingctx, array, i, a):  # type: ignore[no-untyped-def]
    _check(array, 2)
    return _LANES_TYPE(array, i, a), _emit_load


@intrinsic
def _store(typingctx, array, a, value):  # type: ignore[no-untyped-def]
    _check(array, 1)
    return types.void(array, a, value), _emit_store


@intrinsic
def _store_at(typingctx, array, i, a, value):  # type: ignore[no-untyped-def]
    _check(array, 2)
    return types.void(array, i, a, value), _emit_store


@intrinsic
def _splat(typingctx, value):  # type: ignore[no-untyped-def]
    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        nothing = ir.Constant(_VECTOR, ir.Undefined)
        one = builder.insert_element(nothing, args[0], _PLACE(0))
        return _shuffled(builder, one, nothing, [0, 0, 0, 0])

    return _LANES_TYPE(types.float64), emit


@intrinsic
def _multiply_add(typingctx, x, y, z):  # type: ignore[no-untyped-def]
    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fadd(builder.fmul(args[0], args[1], flags=_FLAGS), args[2], flags=_FLAGS)

    return _LANES_TYPE(_LANES_TYPE, _LANES_TYPE, _LANES_TYPE), emit


@intrinsic
def _subtract(typingctx, x, y):  # type: ignore[no-untyped-def]
    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fsub(args[0], args[1], flags=_FLAGS)

    return _LANES_TYPE(_LANES_TYPE, _LANES_TYPE), emit


def _pairs_added(builder: Any, one: Any, other: Any, low: list[int], high: list[int]) -> Any:
    return builder.fadd(_shuffled(builder, one, other, low), _shuffled(builder, one, other, high), flags=_FLAGS)


@intrinsic
def _totals(typingctx, x, y, z, w):  # type: ignore[no-untyped-def]
    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        front = _pairs_added(builder, args[0], args[1], [0, 4, 2, 6], [1, 5, 3, 7])
        back = _pairs_added(builder, args[2], args[3], [0, 4, 2, 6], [1, 5, 3, 7])
        return _pairs_added(builder, front, back, [0, 1, 4, 5], [2, 3, 6, 7])

    return _LANES_TYPE(_LANES_TYPE, _LANES_TYPE, _LANES_TYPE, _LANES_TYPE), emit


@intrinsic
def _total(typingctx, x):  # type: ignore[no-untyped-def]
    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        halves = _pairs_added(builder, args[0], args[0], [0, 1], [2, 3])
        return builder.fadd(
            builder.extract_element(halves, _PLACE(0)), builder.extract_element(halves, _PLACE(1)), flags=_FLAGS
        )

    return types.float64(_LANES_TYPE), emit


def _plain_load(array, a):  # type: ignore[no-untyped-def]
    return array[a], array[a + 1], array[a + 2], array[a + 3]


def _plain_load_at(array, i, a):  # type: ignore[no-untyped-def]
    return array[i, a], array[i, a + 1], array[i, a + 2], array[i, a + 3]


def _plain_store(array, a, value):  # type: ignore[no-untyped-def]
    array[a], array[a + 1], array[a + 2], array[a + 3] = value


def _plain_store_at(array, i, a, value):  # type: ignore[no-untyped-def]
    array[i, a], array[i, a + 1], array[i, a + 2], array[i, a + 3] = value


def _plain_splat(value):  # type: ignore[no-untyped-def]
    return value, value, value, value


def _plain_multiply_add(x, y, z):  # type: ignore[no-untyped-def]
    return x[0] * y[0] + z[0], x[1] * y[1] + z[1], x[2] * y[2] + z[2], x[3] * y[3] + z[3]


def _plain_subtract(x, y):  # type: ignore[no-untyped-def]
    return x[0] - y[0], x[1] - y[1], x[2] - y[2], x[3] - y[3]


def _plain_total(x):  # type: ignore[no-untyped-def]
    return (x[0] + x[2]) + (x[1] + x[3])


def _plain_totals(x, y, z, w):  # type: ignore[no-untyped-def]
    return (
        (x[0] + x[1]) + (x[2] + x[3]),
        (y[0] + y[1]) + (y[2] + y[3]),
        (z[0] + z[1]) + (z[2] + z[3]),
        (w[0] + w[1]) + (w[2] + w[3]),
    )


def _chosen(compiled: Any, plain: Any) -> Any:
    if vars(config)["DISABLE_JIT"]:
        return plain
    return inner(plain) if CHECKS_BOUNDS else compiled


load = _chosen(_load, _plain_load)  # load(array, a): array[a : a + 4]
load_at = _chosen(_load_at, _plain_load_at)  # load_at(array, i, a): array[i, a : a + 4]
store = _chosen(_store, _plain_store)  # store(array, a, lanes)
store_at = _chosen(_store_at, _plain_store_at)  # store_at(array, i, a, lanes)
splat = _chosen(_splat, _plain_splat)  # splat(float): four times the same
multiply_add = _chosen(_multiply_add, _plain_multiply_add)  # x * y + z
subtract = _chosen(_subtract, _plain_subtract)  # x - y
total = _chosen(_total, _plain_total)  # the sum of four, a float
totals = _chosen(_totals, _plain_totals)  # the sums of four lanes each, as lanes
