"""``fastrfm info``: what a file holds, or which devices this machine has, for people or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastrfm.cli.common import count, echo_report, shape_in_words, share_in_words

if TYPE_CHECKING:
    from fastrfm.devices import Device

_SHOWN_APART = ("shape", "n_observed", "share_observed", "options", "attributes")
_LABELS = {
    "n_empty_rows": "rows without observations",
    "n_empty_cols": "columns without observations",
    "n_bytes": "bytes on disk",
    "n_iter": "iterations",
    "masked_rmse": "RMSE on observed",
    "dtype": "number type",
    "has_row_names": "row names",
    "has_col_names": "column names",
    "min_value": "smallest value",
    "max_value": "largest value",
    "has_offsets": "offsets",
    "stop_reason": "why it stopped",
}


@click.command("info")
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--devices", "about_devices", is_flag=True, help="Say which devices can be used, and why others cannot.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def command(file: Path | None, about_devices: bool, as_json: bool) -> None:
    """Say what a file holds, or which devices there are.

    FILE is an HDF5 file of observations or a result, or anything that convert reads.
    """
    if about_devices == (file is not None):
        raise click.UsageError("give either a FILE or --devices")
    if file is None:
        _say_devices(as_json)
        return
    about = _describe(file)
    if as_json:
        click.echo(json.dumps(about, indent=2))
        return
    lines: list[tuple[str, Any]] = [("file", file), ("shape", shape_in_words(about["shape"]))]
    lines.append(("observed", share_in_words(about["n_observed"], about["shape"])))
    for name, value in about.items():
        if name not in _SHOWN_APART:
            lines.append((_LABELS.get(name, name.replace("_", " ")), _in_words(value)))
    for group in ("options", "attributes"):
        lines += [(f"{group.removesuffix('s')} {name}", _in_words(value)) for name, value in about[group].items()]
    echo_report(lines)


def _say_devices(as_json: bool) -> None:
    from fastrfm.devices import describe_devices, describe_software

    devices, software = describe_devices(), describe_software()
    if as_json:
        click.echo(json.dumps({"devices": [asdict(device) for device in devices], "software": software}, indent=2))
        return
    lines = [(device.kind, _device_in_words(device)) for device in devices]
    lines += [("numba", software["numba"] or "none"), ("numba.cuda", software["cuda_target"] or "none")]
    lines += [(name, f"CUDA {software[name]}" if software[name] else "none") for name in ("toolkit", "driver")]
    echo_report(lines)


def _device_in_words(device: Device) -> str:
    parts = [device.name]
    if device.compute_capability:
        parts.append(f"compute capability {device.compute_capability}")
    for number, unit in (
        (device.n_multiprocessors, "multiprocessor"),
        (device.n_cores, "core"),
        (device.n_threads, "thread"),
    ):
        parts += [] if number is None else [count(number, unit)]
    if device.memory_bytes is not None and device.free_bytes is not None:
        parts.append(f"{device.memory_bytes / 2**30:.1f} GiB of memory, {device.free_bytes / 2**30:.1f} GiB free")
    words = ", ".join(parts)
    return f"{words}: can be used" if device.reason is None else f"{words}: cannot be used, {device.reason}"


def _describe(file: Path) -> dict[str, Any]:
    from fastrfm.readers import file_kind, read_with_notes

    if file_kind(file) == "hdf5":
        from fastrfm.store import describe

        return {"options": {}, **describe(file)}
    reading = read_with_notes(file)
    observations = reading.observations
    return {
        "kind": reading.layout,
        "shape": observations.shape,
        "n_observed": observations.n_observed,
        "share_observed": observations.n_observed / (observations.n_rows * observations.n_cols),
        "dtype": str(observations.dtype),
        "min_value": observations.value_range[0],
        "max_value": observations.value_range[1],
        "n_empty_rows": int((observations.row_counts == 0).sum()),
        "n_empty_cols": int((observations.col_counts == 0).sum()),
        "has_row_names": observations.row_names is not None,
        "has_col_names": observations.col_names is not None,
        "n_bytes": file.stat().st_size,
        "options": {},
        "attributes": {},
        "notes": reading.notes,
    }


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
