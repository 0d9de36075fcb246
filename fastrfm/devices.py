"""Which device a computation runs on."""

from __future__ import annotations

import warnings

from fastrfm.errors import DeviceError, DeviceWarning


def resolve(device: str) -> str:
    """Return "cpu" or "cuda"; "auto" falls back with a DeviceWarning, "cuda" raises DeviceError without a device."""
    if device == "cpu":
        return "cpu"
    from fastrfm import _cuda

    if _cuda.IS_SIMULATED or bool(vars(_cuda)["cuda"].is_available()):
        return "cuda"
    if device == "auto":
        warnings.warn("no CUDA device can be used: the processor does the work", DeviceWarning, stacklevel=3)
        return "cpu"
    raise DeviceError('no CUDA device can be used: a driver and a device are missing; use device="cpu"')
