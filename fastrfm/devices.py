"""Which device the work runs on, and what this machine has: the processor, CUDA devices, and what keeps one from use.

After ``_cuda``, which is imported only when a device other than the processor is asked for or about: runs on the
processor never load numba.cuda. Everything about a device comes through ``from numba import cuda``, be it Numba's own
target or the package numba-cuda that takes its place. Not here: kernels and their options (``_cuda``), arrays.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fastrfm._memory import free_memory, total_memory
from fastrfm._numba import available_threads
from fastrfm.errors import DeviceError, DeviceWarning

INSTALL = "pip install 'fastrfm[cuda]'"
_CUDA_13_LEAST = (7, 5)  # CUDA 13 compiles for no older device, which Numba's own target does not know
# What the driver says at its start, and what that means.
_DRIVER_FAULTS = {
    "cannot be found": "the CUDA driver library (libcuda) was not found: install NVIDIA's driver, or give the "
    "container access to the GPU",
    "NUMBA_DISABLE_CUDA": "CUDA is switched off by NUMBA_DISABLE_CUDA in the environment",
    "STUB_LIBRARY": "the CUDA driver library that was found is the toolkit's stub, not NVIDIA's driver: take its "
    "folder off LD_LIBRARY_PATH",
    "SYSTEM_DRIVER_MISMATCH": "the CUDA driver library and the kernel's driver module are of different versions: "
    "update the driver, or restart the machine after an update",
    "COMPAT_NOT_SUPPORTED": "the CUDA driver is too old for the compatibility library in use: update NVIDIA's driver",
    "INSUFFICIENT_DRIVER": "the CUDA driver is too old: update NVIDIA's driver",
}


@dataclass(frozen=True)
class Device:
    """A device of this machine; what is not known of it is None.

    Attributes
    ----------
    kind : {"cpu", "cuda"}
    name : str
    reason : str or None
        Why it cannot be used; None if it can.
    compute_capability : str or None
        Of a CUDA device, such as "8.0".
    n_cores, n_threads : int or None
        Of the processor: its cores, and the threads that kernels use.
    n_multiprocessors : int or None
        Of a CUDA device.
    memory_bytes, free_bytes : int or None
    """

    kind: str
    name: str
    reason: str | None = None
    compute_capability: str | None = None
    n_cores: int | None = None
    n_threads: int | None = None
    n_multiprocessors: int | None = None
    memory_bytes: int | None = None
    free_bytes: int | None = None


def resolve(device: str) -> str:
    """Return "cpu" or "cuda": where work that asks for `device` runs.

    Parameters
    ----------
    device : {"cpu", "cuda", "auto"}

    Raises
    ------
    DeviceError
        If "cuda" cannot be used; it says what is missing.

    Warns
    -----
    DeviceWarning
        If "auto" stands for the processor; it says why.
    """
    if device == "cpu":
        return "cpu"
    reason = why_not_cuda()
    if reason is None:
        return "cuda"
    if device == "auto":
        warnings.warn(f"the processor does the work: {reason}", DeviceWarning, stacklevel=3)
        return "cpu"
    raise DeviceError(
        f'device="{device}" cannot be used: {reason}. Use device="cpu" or "auto"; fastrfm info --devices lists what '
        "there is"
    )


def why_not_cuda() -> str | None:
    """Return why kernels cannot run on the CUDA device that Numba takes, in one line; None if they can."""
    cuda, reason = _target()
    if cuda is None or _is_simulated():
        return reason
    return _software_fault(cuda) or _cuda_device(cuda, 0).reason


def why_not_compiled() -> str | None:
    """Return why device kernels cannot be compiled, on this machine or for another, in one line; None if they can."""
    cuda, reason = _target()
    if cuda is None:
        return reason
    return "the simulator runs kernels without compiling them" if _is_simulated() else _toolkit_fault(cuda)


def describe_devices() -> list[Device]:
    """Return the processor and then every CUDA device, or one entry that says why there is none."""
    return [_processor(), *_cuda_devices()]


def describe_software() -> dict[str, str | None]:
    """Return by name: Numba's version, what compiles for CUDA, the CUDA of toolkit and driver; None if missing."""
    cuda, _ = _target()
    known: dict[str, str | None] = {"numba": _version("numba"), "cuda_target": None, "toolkit": None, "driver": None}
    if cuda is None:
        return known
    name = "numba-cuda" if _is_package(cuda) else "numba"
    known["cuda_target"] = f"{'' if name == 'numba-cuda' else 'built into '}{name} {_version(name)}"
    if _is_simulated():
        known["cuda_target"] = f"{known['cuda_target']}, simulated"
        return known
    if _toolkit_fault(cuda) is None:
        known["toolkit"] = _dotted(cuda.runtime.get_version())
    if _driver_fault(cuda) is None:
        known["driver"] = _dotted(cuda.cudadrv.driver.driver.get_version())
    return known


def _target() -> tuple[Any, str | None]:
    try:
        from fastrfm import _cuda
    except ImportError as error:
        return None, f"numba.cuda cannot be imported ({_one_line(error)}): {INSTALL}"
    except Exception as error:  # such as a ValueError for NUMBA_CUDA_DRIVER that names no file
        return None, f"numba.cuda cannot be loaded: {_one_line(error)}"
    return vars(_cuda)["cuda"], None


def _is_simulated() -> bool:
    from fastrfm._cuda import IS_SIMULATED

    return IS_SIMULATED


def _is_package(cuda: Any) -> bool:
    return bool(getattr(cuda, "implementation", "") == "NVIDIA")


def _software_fault(cuda: Any) -> str | None:
    reason = _driver_fault(cuda) or _toolkit_fault(cuda)
    if reason is not None:
        return reason
    driver, toolkit = cuda.cudadrv.driver.driver.get_version(), cuda.runtime.get_version()
    # numba-cuda links with the toolkit's own linker, which any driver of the same CUDA generation takes the result of;
    # the built-in target has the driver read the toolkit's PTX.
    n_parts = 1 if _is_package(cuda) else 2
    if driver[:n_parts] < toolkit[:n_parts]:
        return (
            f"the CUDA driver is too old, for CUDA {_dotted(driver)}, and kernels are compiled by CUDA "
            f"{_dotted(toolkit)}: update NVIDIA's driver"
        )
    return None


def _driver_fault(cuda: Any) -> str | None:
    _answers(cuda.is_available)  # starts the driver; why that failed is kept
    said = cuda.cuda_error()
    try:
        n_devices = 0 if said else len(cuda.gpus)
    except Exception as error:  # the driver's own exception class has another home in every version
        said, n_devices = str(error), 0
    if n_devices > 0:
        return None
    if not said or "NO_DEVICE" in said:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden!r} may hide it)"
        return f"the CUDA driver is there, but it finds no CUDA device{why}"
    known = [meaning for sign, meaning in _DRIVER_FAULTS.items() if sign in said]
    return known[0] if known else f"the CUDA driver does not start: {_one_line(said)}"


def _toolkit_fault(cuda: Any) -> str | None:
    compiler = "NVRTC" if _is_package(cuda) else "the CUDA runtime library"
    parts: dict[str, Callable[[], Any]] = {
        "NVVM": lambda: cuda.cudadrv.nvvm.is_available(),
        "libdevice": lambda: cuda.cudadrv.libs.get_libdevice(),
        compiler: lambda: cuda.runtime.get_version(),
    }
    missing = [name for name, probe in parts.items() if not _answers(probe)]
    if not missing:
        return None
    return f"the CUDA toolkit that compiles kernels is not complete, {' and '.join(missing)} not found: {INSTALL}"


def _answers(probe: Callable[[], Any]) -> bool:
    try:
        return bool(probe())
    except Exception:  # each library has its own way to be missing
        return False


def _cuda_devices() -> list[Device]:
    cuda, reason = _target()
    if cuda is None:
        return [Device("cuda", "none", reason)]
    if _is_simulated():
        return [Device("cuda", "Numba's simulator")]
    fault = _driver_fault(cuda)
    if fault is not None:
        return [Device("cuda", "none", fault)]
    return [_cuda_device(cuda, number) for number in range(len(cuda.gpus))]


def _cuda_device(cuda: Any, number: int) -> Device:
    device = cuda.gpus[number]
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    known: dict[str, Any] = {
        "kind": "cuda",
        "name": name,
        "compute_capability": _dotted(device.compute_capability),
        "n_multiprocessors": int(device.MULTIPROCESSOR_COUNT),
    }
    reason = _software_fault(cuda) or _too_old(cuda, device, f"device {number} ({name})")
    if reason is not None:
        return Device(**known, reason=reason)
    try:
        with device:
            memory = cuda.current_context().get_memory_info()
    except Exception as error:  # taken by another process, out of memory, broken
        return Device(**known, reason=f"device {number} ({name}) cannot be opened: {_one_line(error)}")
    return Device(**known, memory_bytes=int(memory.total), free_bytes=int(memory.free))


def _too_old(cuda: Any, device: Any, name: str) -> str | None:
    toolkit = cuda.runtime.get_version()
    home = cuda.cudadrv.nvrtc if _is_package(cuda) else cuda.cudadrv.nvvm
    supported = [tuple(pair) for pair in home.get_supported_ccs()]
    if not supported:
        return f"CUDA {_dotted(toolkit)} is older than Numba supports: {INSTALL}"
    least = max(min(supported), _CUDA_13_LEAST if toolkit >= (13,) else (0, 0))
    if tuple(device.compute_capability) >= least:
        return None
    return (
        f"{name} has compute capability {_dotted(device.compute_capability)}, and CUDA {_dotted(toolkit)} compiles for "
        f"{_dotted(least)} or newer: CUDA_VISIBLE_DEVICES chooses another device"
    )


def _processor() -> Device:
    return Device(
        "cpu",
        _processor_name(),
        n_cores=os.cpu_count(),
        n_threads=available_threads(),
        memory_bytes=total_memory(),
        free_bytes=free_memory(),
    )


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _one_line(said: object) -> str:
    return " ".join(str(said).split()).rstrip(":. ")
