"""The one place that names CUDA options: how device kernels are compiled, launched and put on streams.

Beside ``_numba``, and imported only once a device is asked for, or asked about. A device kernel is called like its twin
on the processor, with the same arguments on the device; how many blocks of how many threads it takes follows from them
by the launch rule in its decorator. Every loop over items or groups strides by the whole grid, so that any grid covers
any number of them, and positions are int64: more than 2³¹ entries are no special case. Not here: arrays, memory and
which devices there are (``devices``), and any arithmetic of the method.

Kernels are compiled in every process that uses them (about half a second each), not kept on disk: Numba's cache would
not notice an edited function that a kernel shares with its twin. With ``NUMBA_ENABLE_CUDASIM=1`` every kernel runs in
Numba's simulator, thread by thread, on few threads.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import config, cuda

from fastrfm.errors import DeviceError, DeviceMemoryError

IS_SIMULATED = bool(vars(config)["ENABLE_CUDASIM"])
if not IS_SIMULATED:
    from numba.cuda import dispatcher

    dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # launches of few blocks are meant
# A power of two: block sums halve. The simulator starts a Python thread for each.
N_THREADS = 2 if IS_SIMULATED else 128
# Blocks of one launch: enough to fill any device many times over; the rest is the stride of a loop in the kernel.
MOST_BLOCKS = 4 if IS_SIMULATED else 1 << 16
MOST_SHARED_BYTES = 48 << 10  # what a block may have without asking for more


@dataclass(frozen=True)
class Launch:
    """Blocks, threads of each, and bytes of dynamic shared memory of each."""

    n_blocks: int
    n_threads: int = N_THREADS
    shared_bytes: int = 0


def over_items(n_items: int, n_threads: int = N_THREADS) -> Launch:
    """Return a launch with a thread for each item, or fewer that stride over them; no blocks for no items."""
    return Launch(min(-(-n_items // n_threads), MOST_BLOCKS), n_threads)


def over_groups(n_groups: int, *, shared_bytes: int = 0, n_threads: int = N_THREADS) -> Launch:
    """Return a launch with a block for each group (a row, a column, a tile), or fewer that stride over them."""
    return Launch(min(n_groups, MOST_BLOCKS), n_threads, shared_bytes)


class DeviceKernel:
    """A compiled kernel that takes the arguments of its twin.

    Attributes
    ----------
    function : callable
        As written: its signature is the twin's.
    types : str
        A word for each argument: its element type and its number of dimensions, 0 for a scalar. ``i`` int32, ``l``
        int64, ``d`` float64, ``r`` the number type of the factors and ``v`` that of the values, float32 or float64 by
        themselves. What the kernel is compiled for where there is no device to call it.
    """

    def __init__(self, function: Callable[..., Any], launch: Callable[..., Launch], types: str) -> None:
        self.function, self._launch, self.types = function, launch, types
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        names = list(inspect.signature(function).parameters)
        self._places = [names.index(name) for name in inspect.signature(launch).parameters]

    @cached_property
    def _compiled(self) -> Any:
        return cuda.jit(self.function)

    def launch(self, *arguments: Any) -> Launch:
        """Return how a call with these arguments would be launched."""
        return self._launch(*(arguments[place] for place in self._places))

    def __call__(self, *arguments: Any) -> None:
        shape = self.launch(*arguments)
        if shape.shared_bytes > MOST_SHARED_BYTES:
            raise DeviceError(
                f"{self.__name__} has no room for that many directions on a device: ask for a smaller rank, or use "
                'device="cpu"'
            )
        if shape.n_blocks > 0:
            self._compiled[shape.n_blocks, shape.n_threads, compute_stream(), shape.shared_bytes](*arguments)


def device_kernel(launch: Callable[..., Launch], types: str) -> Callable[[Callable[..., Any]], DeviceKernel]:
    """Compile for the device, to be launched by `launch`: a function of those of the kernel's arguments it names.

    `types` are those of :class:`DeviceKernel`.
    """
    return lambda function: DeviceKernel(function, launch, types)


def device_inner(function: Callable[..., Any]) -> Any:
    """Compile `function` for use inside device kernels; often one that the twin compiles as well."""
    return cuda.jit(device=True)(function)


_streams: dict[str, Any] = {}


def _stream(name: str) -> Any:
    if name not in _streams:
        _streams[name] = cuda.stream()
    return _streams[name]


def compute_stream() -> Any:
    """Return the stream that all kernels run on, in the order of the calls."""
    return _stream("compute")


def copy_stream() -> Any:
    """Return the stream that row blocks are copied on while kernels run."""
    return _stream("copy")


class _Own(threading.local):
    """What a Python thread keeps on the device, and who gives it memory back; kernels of other threads come between."""

    def __init__(self) -> None:
        self.scratch: dict[str, Any] = {}
        self.rows: dict[str, tuple[int, Any]] = {}
        self.lenders: weakref.WeakSet[Any] = weakref.WeakSet()


_own = _Own()


def lends(lender: Any) -> None:
    """Ask `lender`, as long as it lives, to give memory up when the device has no more for this Python thread.

    ``lender.give_up()`` returns whether it has, and comes to an end: at last it has nothing left. Those with
    ``lender.is_kept`` are asked first.
    """
    _own.lenders.add(lender)


def _allocated(make: Callable[[], Any], n_bytes: int, *, is_spare: bool = False) -> Any:
    """Return what `make` makes, if need be in the place of scratch and, unless it is spare, of what lenders have."""
    while True:
        try:
            return make()
        except Exception as error:
            # The driver's own exception class has another home in every version of Numba's CUDA packages.
            if "OUT_OF_MEMORY" not in str(error).upper().replace(" ", "_"):
                raise
            if _scratch_is_given_up() or (not is_spare and _something_is_given_up()):
                continue
            raise DeviceMemoryError(
                f"the device has no room for another {n_bytes / 2**20:.0f} MiB: close other programs on it, ask for a "
                'smaller rank or fewer features, or use device="cpu"'
            ) from error


def _scratch_is_given_up() -> bool:
    had = bool(_own.scratch or _own.rows)
    _own.scratch.clear()
    _own.rows.clear()
    return had


def _something_is_given_up() -> bool:
    return any(lender.give_up() for lender in sorted(_own.lenders, key=lambda lender: not lender.is_kept))


def put(array: np.ndarray) -> Any:
    """Return a copy of `array` on the device, in C order."""
    array = np.ascontiguousarray(array)
    return _allocated(lambda: cuda.to_device(array, stream=compute_stream()), array.nbytes)


def empty(shape: tuple[int, ...] | int, dtype: Any = np.float64, *, is_spare: bool = False) -> Any:
    """Return an array on the device with whatever was there before; nobody else gives memory up for a spare one."""
    shape = (shape,) if isinstance(shape, int) else shape
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return _allocated(lambda: cuda.device_array(shape, dtype), n_bytes, is_spare=is_spare)


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return an array for work that ends before the next call with that name; it is kept and used again.

    Asking a device for memory takes longer than many a kernel. Kernels run in the order of the calls, so that the next
    user of the array comes after the last one; every Python thread has arrays of its own.
    """
    kept = _own.scratch.get(name)
    if kept is None or kept.shape != shape or kept.dtype != np.dtype(dtype):
        _own.scratch.pop(name, None)
        kept = None  # given back before the new one is asked for
        kept = _own.scratch[name] = empty(shape, dtype)
    return kept


def scratch_rows(name: str, n_most: int, n_cols: int, dtype: Any) -> Any:
    """Return :func:`scratch` of up to `n_most` rows, (n, n_cols): as many as there is memory for, at least one.

    Fewer take longer, so that others give memory up only for the last one.
    """
    wanted, kept = _own.rows.pop(name, (0, None))
    if kept is None or wanted < n_most or kept.shape[1] != n_cols or kept.dtype != np.dtype(dtype):
        kept, n = None, n_most
        while kept is None:
            try:
                kept = empty((n, n_cols), dtype, is_spare=n > 1)
            except DeviceMemoryError:
                if n == 1:
                    raise
                n //= 2
        wanted = n_most
    _own.rows[name] = wanted, kept
    return kept if kept.shape[0] <= n_most else kept[:n_most]


def on_loan(name: str, array: np.ndarray) -> Any:
    """Return a copy of a small `array` on the device that is good for the next kernel, in :func:`scratch`."""
    out = scratch(name, array.shape, array.dtype)
    if array.size:
        out.copy_to_device(np.ascontiguousarray(array), stream=compute_stream())
    return out


def pinned(n: int, dtype: Any) -> np.ndarray:
    """Return page-locked memory of the processor, which a device copies from while kernels run."""
    n_bytes = n * np.dtype(dtype).itemsize
    return np.asarray(_allocated(lambda: cuda.pinned_array(max(n, 1), dtype), n_bytes, is_spare=True))[:n]


def event() -> Any:
    """Return a mark that one stream leaves and another waits for."""
    return cuda.event() if IS_SIMULATED else cuda.event(timing=False)


def free_bytes() -> float:
    """Return how much memory the device has to give; the simulator, as much as is asked for."""
    _scratch_is_given_up()
    context = cuda.current_context()
    if not IS_SIMULATED:
        context.memory_manager.deallocations.clear()  # what has been given up is freed only now
    return float(context.get_memory_info().free)


def fetch(array: Any) -> np.ndarray:
    """Return a device array's elements, once all kernels before are done."""
    out = array.copy_to_host(stream=compute_stream())
    compute_stream().synchronize()
    return np.asarray(out)


@device_inner
def block_sum(value: Any, room: Any) -> Any:
    """Return the sum of `value` over the threads of a block, the same bits in each; all of them must call it.

    `room` is shared memory, one element a thread. The order of the additions is fixed by the number of threads.
    """
    me = cuda.threadIdx.x
    room[me] = value
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if me < half:
            room[me] += room[me + half]
        cuda.syncthreads()
        half //= 2
    total = room[0]
    cuda.syncthreads()  # nobody writes to the room again before all have read
    return total
