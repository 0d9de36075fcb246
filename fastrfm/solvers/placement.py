"""Where a solver works: on the processor's row blocks, or on the same ones on a device.

Flow: ``runs``, ``selection`` and ``descent`` place their observations; the loops are the same. A device's modules are
loaded only where one is used. Not here: which devices can be used (``devices``, asked once by ``completion``).
"""

from __future__ import annotations

from fastrfm.blocks import RowBlocks


def placed(observations: RowBlocks, device: str) -> RowBlocks:
    """Return the observations on `device`: "cpu", or "cuda" that can be used."""
    if device != "cuda":
        return observations
    from fastrfm.device_blocks import DeviceBlocks

    return DeviceBlocks(observations)
