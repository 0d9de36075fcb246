"""Which device is taken, and what is said about one that cannot be: every reason, from a stand-in for numba.cuda."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastrfm import MatrixCompletion, Observations, complete, devices
from fastrfm._memory import free_memory, total_memory
from fastrfm.errors import DeviceError, DeviceWarning, FastrfmError
from fastrfm.options import DEVICES, CompletionOptions

NOT_FOUND = (
    "\nCUDA driver library cannot be found.\nIf you are sure that a CUDA driver is installed,\ntry setting ...\n"
)
ROOT = Path(__file__).resolve().parent.parent


class Gpu:
    """A device as ``cuda.gpus`` holds them: a context manager, whose name is bytes in Numba's own target."""

    MULTIPROCESSOR_COUNT = 108

    def __init__(self, compute_capability=(8, 0), name=b"NVIDIA A100", opens=True):
        self.compute_capability, self.name, self.opens = compute_capability, name, opens

    def __enter__(self):
        if not self.opens:
            raise RuntimeError("[46] Call to cuDevicePrimaryCtxRetain results in\nCUDA_ERROR_DEVICE_UNAVAILABLE")

    def __exit__(self, *_):
        return None


def missing(*_):
    raise OSError("libsomething.so: cannot open shared object file")


def target(
    *,
    gpus=None,
    error=None,
    driver=(13, 0),
    toolkit=(13, 0),
    supported=((5, 0), (7, 5), (8, 0)),
    nvvm=lambda: True,
    libdevice=lambda: "/libdevice.bc",
    runtime=None,
    implementation="Built-in",
):
    """Return what of numba.cuda is asked, on a machine with everything in place but what is given."""
    memory = SimpleNamespace(free=3 << 30, total=4 << 30)
    ccs = SimpleNamespace(is_available=nvvm, get_supported_ccs=lambda: supported)
    return SimpleNamespace(
        implementation=implementation,
        gpus=list((Gpu(),) if gpus is None else gpus),
        is_available=lambda: error is None and nvvm(),
        cuda_error=lambda: error,
        runtime=SimpleNamespace(get_version=runtime or (lambda: toolkit)),
        current_context=lambda: SimpleNamespace(get_memory_info=lambda: memory),
        cudadrv=SimpleNamespace(
            nvvm=ccs,
            nvrtc=ccs,
            libs=SimpleNamespace(get_libdevice=libdevice),
            driver=SimpleNamespace(driver=SimpleNamespace(get_version=lambda: driver)),
        ),
    )


@pytest.fixture
def has(monkeypatch):
    def put(**parts):
        monkeypatch.setattr(devices, "_target", lambda: (target(**parts), None))

    return put


REASONS = [
    ({"error": NOT_FOUND}, r"driver library \(libcuda\) was not found: install NVIDIA's driver"),
    (
        {"error": "CUDA is disabled due to setting NUMBA_DISABLE_CUDA=1 in the environment, ..."},
        "switched off by NUMBA",
    ),
    ({"error": "Call to cuInit results in CUDA_ERROR_NO_DEVICE (100)"}, "driver is there, but it finds no CUDA device"),
    ({"gpus": ()}, "driver is there, but it finds no CUDA device"),
    ({"error": "Call to cuInit results in CUDA_ERROR_STUB_LIBRARY (34)"}, "the toolkit's stub"),
    ({"error": "Call to cuInit results in CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"}, "of different versions"),
    (
        {"error": "Call to cuInit results in\nCUDA_ERROR_UNKNOWN (999)"},
        r"does not start: .* CUDA_ERROR_UNKNOWN \(999\)",
    ),
    ({"nvvm": lambda: False}, r"NVVM not found: pip install 'fastrfm\[cuda\]'"),
    ({"nvvm": missing, "libdevice": missing}, "NVVM and libdevice not found"),
    ({"libdevice": lambda: None}, "complete, libdevice not found"),
    ({"runtime": missing}, "the CUDA runtime library not found"),
    ({"runtime": missing, "implementation": "NVIDIA"}, r"complete, NVRTC not found: pip install 'fastrfm\[cuda\]'"),
    ({"driver": (12, 4), "toolkit": (13, 0)}, "driver is too old, for CUDA 12.4, .* compiled by CUDA 13.0: update"),
    ({"driver": (12, 4), "toolkit": (12, 9)}, "driver is too old"),
    ({"driver": (12, 4), "toolkit": (13, 0), "implementation": "NVIDIA"}, "driver is too old"),
    (
        {"gpus": (Gpu((3, 5), "GeForce GTX 780 Ti"),), "toolkit": (12, 4)},
        r"\(GeForce GTX 780 Ti\).* 3.5, .* 5.0 or newer",
    ),
    ({"gpus": (Gpu((7, 0), b"Tesla V100"),)}, "Tesla V100.* compute capability 7.0, and CUDA 13.0 .* 7.5 or newer"),
    ({"supported": (), "toolkit": (10, 0)}, "CUDA 10.0 is older than Numba supports"),
    ({"gpus": (Gpu(opens=False),)}, "cannot be opened: .*CUDA_ERROR_DEVICE_UNAVAILABLE"),
]


@pytest.mark.parametrize(("parts", "said"), REASONS, ids=range(len(REASONS)))
def test_what_is_missing_is_named(has, parts, said):
    has(**parts)
    with pytest.raises(DeviceError, match=said) as caught:
        devices.resolve("cuda")
    message = str(caught.value)
    assert "\n" not in message and 'device="cpu" or "auto"' in message and "fastrfm info --devices" in message
    assert isinstance(caught.value, FastrfmError)
    with pytest.warns(DeviceWarning, match=said) as warned:
        assert devices.resolve("auto") == "cpu"
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    listed = devices.describe_devices()
    assert [device.kind for device in listed] == ["cpu", "cuda"]
    assert listed[0].reason is None and listed[1].reason in message
    assert devices.resolve("cpu") == "cpu"


def test_a_device_that_hides_is_hinted_at(has, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    has(gpus=())
    assert "(CUDA_VISIBLE_DEVICES='' may hide it)" in devices.why_not_cuda()


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"driver": (13, 1)},
        {"driver": (12, 2), "toolkit": (12, 9), "implementation": "NVIDIA"},  # it has a linker of its own
        {"gpus": (Gpu((7, 0)),), "toolkit": (12, 9), "implementation": "NVIDIA"},
        {"gpus": (Gpu((12, 0)),)},  # newer than the toolkit: the driver compiles on
        {"gpus": (Gpu(), Gpu((3, 5)))},
    ],
)
def test_a_device_that_can_be_used_is(has, parts):
    has(**parts)
    assert devices.resolve("cuda") == devices.resolve("auto") == "cuda"  # warnings are errors
    assert devices.describe_devices()[1].reason is None


def test_all_that_is_known_of_devices_is_told(has):
    has(gpus=(Gpu(), Gpu((3, 5), "old"), Gpu(opens=False)), implementation="NVIDIA", driver=(13, 1))
    processor, *found = devices.describe_devices()
    assert processor.name and 1 <= processor.n_threads and processor.memory_bytes >= processor.free_bytes > 0
    assert found[0] == devices.Device(
        "cuda", "NVIDIA A100", None, "8.0", n_multiprocessors=108, memory_bytes=4 << 30, free_bytes=3 << 30
    )
    assert found[1].compute_capability == "3.5" and "7.5 or newer" in found[1].reason
    assert found[2].memory_bytes is None and found[2].n_multiprocessors == 108
    known = devices.describe_software()
    assert known["toolkit"] == "13.0" and known["driver"] == "13.1" and known["cuda_target"].startswith("numba-cuda")
    json.dumps([dataclasses.asdict(device) for device in found])


def test_software_that_is_missing_is_none(has, monkeypatch):
    has(error=NOT_FOUND, nvvm=missing)
    known = devices.describe_software()
    assert known["cuda_target"].startswith("built into numba ") and known["toolkit"] is None and known["driver"] is None
    monkeypatch.setattr(devices, "_target", lambda: (None, "numba.cuda cannot be imported"))
    assert devices.describe_software()["cuda_target"] is None
    assert devices.why_not_cuda() == devices.describe_devices()[1].reason == "numba.cuda cannot be imported"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("No module named 'numba.cuda'"), r"cannot be imported \(No module .*\): pip install"),
        (ValueError("NUMBA_CUDA_DRIVER /x is not a valid file path."), "cannot be loaded: NUMBA_CUDA_DRIVER /x"),
    ],
)
def test_numba_without_cuda_is_said(monkeypatch, error, said):
    import builtins

    plain = builtins.__import__

    def refuse(name, context=None, local=None, wanted=(), level=0):
        if name == "fastrfm" and "_cuda" in (wanted or ()):
            raise error
        return plain(name, context, local, wanted, level)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DeviceError, match=said):
        devices.resolve("cuda")


def test_this_machine_answers():
    # With or without a device: what it says must be consistent, and no exception gets out.
    reason = devices.why_not_cuda()
    first = devices.describe_devices()[1]
    assert first.kind == "cuda" and first.reason == reason
    if reason is None:
        assert devices.resolve("cuda") == "cuda" and first.memory_bytes > 0
    else:
        with pytest.warns(DeviceWarning, match="the processor does the work"):
            assert devices.resolve("auto") == "cpu"


def test_options_take_every_device():
    assert DEVICES == ("cpu", "cuda", "auto")
    assert [CompletionOptions(device=name).device for name in DEVICES] == list(DEVICES)


def test_asking_for_a_device_that_is_missing_stops_a_completion(has):
    has(error=NOT_FOUND)
    matrix = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    with pytest.raises(DeviceError, match="driver library"):
        complete(Observations.from_dense(matrix), device="cuda")
    with pytest.raises(DeviceError, match="driver library"):
        MatrixCompletion(ridge=0.0, device="cuda").fit(matrix)
    with pytest.warns(DeviceWarning, match="the processor does the work: the CUDA driver library") as warned:
        result = complete(Observations.from_dense(matrix), rank=1, device="auto")
    assert warned[0].filename == __file__ and len(warned) == 1
    np.testing.assert_allclose(result.to_dense(), matrix, rtol=1e-6)


def test_runs_on_the_processor_never_load_cuda():
    script = """
import sys
import warnings
import numpy as np
import fastrfm
warnings.simplefilter("error")
fastrfm.complete(fastrfm.Observations.from_dense(np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])), rank=1, device="cpu")
print([name for name in sys.modules if name.startswith("numba.cuda") or name == "fastrfm._cuda"])
"""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


def test_memory_of_the_machine():
    assert total_memory() >= free_memory() > 0
