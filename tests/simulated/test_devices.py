"""The simulator counts as a device that can be used."""

from __future__ import annotations

from fastrfm import devices


def test_the_simulator_is_taken():
    assert devices.resolve("cuda") == devices.resolve("auto") == "cuda"
    assert devices.resolve("cpu") == "cpu"
    assert devices.why_not_cuda() is None
    assert [(device.kind, device.reason) for device in devices.describe_devices()] == [("cpu", None), ("cuda", None)]
    assert devices.describe_software()["cuda_target"].endswith("simulated")
