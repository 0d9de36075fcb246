"""Checkpoints: the state of a run in a file, so that a killed one goes on and ends with the same bits.

Flow: ``completion.complete`` makes a ``Checkpoint``; a solver takes from it the state to begin from and, at the top of
each iteration, writes its own if that is due. A state is a nested dict of arrays and plain values. It is of one set of
observations and options, named by a digest and checked on the way back. Not here: what a solver's state is.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from fastrfm._hdf5 import TEXT, get_attribute, get_dataset, get_group, reading, writing_hdf5
from fastrfm.atomic import PathLike, check_output
from fastrfm.blocks import RowBlocks
from fastrfm.errors import CheckpointWarning, FileFormatError, InputError, WriteError
from fastrfm.options import name_of
from fastrfm.results import CompletionResult

FORMAT_VERSION = 1
_FREE = ("n_threads", "device")  # options that do not change a bit of the answer
_PLAIN = "plain"

State = dict[str, Any]


def digest_of_result(result: CompletionResult | None) -> str:
    """Return a digest of the factors that a run goes on from, empty if there are none."""
    if result is None:
        return ""
    return hashlib.blake2b(result.left.tobytes() + result.right.tobytes(), digest_size=16).hexdigest()


def digest_of_mask(is_held: np.ndarray) -> str:
    """Return a digest of which entries are held out."""
    return hashlib.blake2b(np.packbits(is_held).tobytes(), digest_size=16).hexdigest()


def digest_of_power(agop_power: Any) -> Any:
    """Return a power as it is; of a function its name and a digest of its values: another one is another run.

    Of functions that fail somewhere from 1e-12 to 1e12 only the name is looked at.
    """
    if not callable(agop_power):
        return agop_power
    try:
        with np.errstate(all="ignore"):
            values = np.asarray(agop_power(np.geomspace(1e-12, 1e12, 97)), dtype=np.float64)
    except Exception:  # what it needs of its argument is its own affair; eigenvalues may lie in there
        values = np.zeros(0)
    return f"{name_of(agop_power)} {hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()}"


def digest(observations: RowBlocks) -> str:
    """Return a digest of shape, dtype and entries; the same wherever they are and however they are read."""
    positions, values, weights = (hashlib.blake2b(digest_size=16) for _ in range(3))
    positions.update(repr(observations.shape).encode() + observations.indptr.tobytes())
    values.update(str(observations.dtype).encode())
    for block in observations.row_blocks():
        positions.update(block.by_row.indices.data)
        values.update(block.by_row.values.data)
        weights.update(block.by_row.weights.data)  # apart, or the digest would tell how long the blocks were
    return positions.hexdigest() + values.hexdigest() + (weights.hexdigest() if observations.is_weighted else "")


@dataclass
class Checkpoint:
    """Where and how often to write, and what a run is of.

    Attributes
    ----------
    path : str or path
    every : int
        Iterations from one state written to the next.
    about : dict
        What the run is of, plain values by name: options and the digest of the observations.
    begin : dict or None
        The state to begin from, until a solver has taken it.
    frame : dict
        What is written with each state: the part of the run that is over.
    """

    path: PathLike
    every: int
    about: State
    begin: State | None = None
    frame: State = field(default_factory=dict)

    @classmethod
    def open(cls, path: PathLike, every: int, about: State, *, resume: bool) -> Checkpoint:
        """Return a checkpoint at `path`, with the state to begin from if `resume` is true and the file is there.

        Raises
        ------
        InputError
            If `every` is no whole number above 0, if the file is there though `resume` is false, or if it is of
            another run: what differs is named.
        FileFormatError
            If it is no checkpoint, or damaged.
        """
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"every must be a whole number of iterations above 0, got {every!r}")
        check_output(path, force=True)
        if not os.path.lexists(path):
            return cls(path, every, about)
        if not resume:
            raise InputError(f"{path}: this checkpoint is there already: go on from it with resume, or remove it")
        with reading(path) as file:
            if file.attrs.get("format") != "fastrfm checkpoint":
                raise FileFormatError("is no checkpoint: give the file that an earlier run wrote as one")
            if get_attribute(file, "format_version") != FORMAT_VERSION:
                raise FileFormatError("is a checkpoint of another version: start over without it")
            _check_same(json.loads(get_attribute(file, "about", str)), about)
            frame, state = (_read(get_group(file, name)) for name in ("frame", "state"))
        return cls(path, every, about, state, frame)

    def take(self) -> State | None:
        """Return the state to begin from, once."""
        state, self.begin = self.begin, None
        return state

    def is_due(self, n_iter: int) -> bool:
        """Return whether the state after so many iterations is to be written."""
        return n_iter > 0 and n_iter % self.every == 0

    def write(self, n_iter: int, state: State) -> None:
        """Write a state; a disk that fails is a warning, and what was written before stays."""
        try:
            with writing_hdf5(self.path, force=True) as file:
                file.attrs.update({"format": "fastrfm checkpoint", "format_version": FORMAT_VERSION})
                file.attrs["about"] = json.dumps(self.about)
                _write(file.create_group("frame"), self.frame)
                _write(file.create_group("state"), state)
        except WriteError as error:
            warnings.warn(f"no checkpoint was written after iteration {n_iter}: {error}", CheckpointWarning, 3)


def _check_same(before: State, now: State) -> None:
    wrong = [name for name in now if name not in _FREE and before.get(name) != now[name]]
    if "observations" in wrong:
        raise InputError("is a checkpoint of other observations: give those that it was made of, or another file")
    if wrong:
        differences = ", ".join(f"{name} {before.get(name)!r} instead of {now[name]!r}" for name in wrong)
        raise InputError(f"is a checkpoint of a run with other options ({differences}): use the same, or another file")


def _write(group: h5py.Group, state: State) -> None:
    plain = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            group.create_dataset(name, data=value)
        elif isinstance(value, dict):
            _write(group.create_group(name), value)
        else:
            plain[name] = value
    # In text every float comes back as it was; as a dataset, for long lists do not fit into an attribute.
    group.create_dataset(_PLAIN, data=json.dumps(plain, default=np.generic.item), dtype=TEXT)


def _read(group: h5py.Group) -> State:
    state: State = json.loads(get_dataset(group, _PLAIN, (), "O").asstr()[()])
    for name, item in group.items():
        if name != _PLAIN:
            state[name] = _read(item) if isinstance(item, h5py.Group) else item[...]
    return state
