"""Files of many kinds to ``Observations``: the first step of the command, and open to Python code as well.

Flow: a path -> its bytes (gz is unpacked) -> what the first bytes say it is -> a reader -> ``Observations``. HDF5 goes
to ``store``; NumPy, SciPy and Matrix Market files to ``binary``; all else is text, read by ``text`` (lines and
delimiters), ``layout`` (triples or dense), ``triples`` and ``dense``. ``docs`` describe each format for users.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrfm.errors import FastrfmError, FileFormatError, InputError
from fastrfm.readers.layout import LAYOUTS, detect_layout
from fastrfm.readers.stream import TextStream, open_stream
from fastrfm.readers.text import open_text, read_bytes, read_start

if TYPE_CHECKING:
    from fastrfm.observations import Observations
    from fastrfm.stored import StoredObservations

__all__ = ["LAYOUTS", "Reading", "file_kind", "read_observations", "read_with_notes"]

_HDF5_SUFFIXES = (".h5", ".hdf5", ".h5ad")
_MAGIC = {
    "hdf5": b"\x89HDF\r\n\x1a\n",
    "npy": b"\x93NUMPY",
    "npz": b"PK\x03\x04",
    "mtx": b"%%MatrixMarket",
}


@dataclass(frozen=True, eq=False)
class Reading:
    """What a file held and how it was understood.

    Attributes
    ----------
    observations : Observations, or StoredObservations of an HDF5 file that does not fit into memory
    layout : str
        How the file was read, in words: ``"triples, tab separated"``, ``"Matrix Market"``, ...
    notes : list of str
        Choices that a reader should know of: header found, missing values dropped, layout guessed.
    """

    observations: Observations | StoredObservations
    layout: str
    notes: list[str] = field(default_factory=list)


def read_observations(
    path: Any, *, layout: str = "auto", indexed: bool = False, memory: int | None = None
) -> Observations | StoredObservations:
    """Return the observations that a file holds, whatever its format.

    Parameters
    ----------
    path : str or path-like
        HDF5 (``.h5``, ``.hdf5``, ``.h5ad``); text with triples (row, column, value) or a dense matrix, plain or gz;
        NumPy ``.npy`` or ``.npz``; SciPy sparse ``.npz``; Matrix Market ``.mtx``. In sparse formats every stored entry
        is observed; in dense ones every entry that is not NaN (in text: blank, NA, N/A, NaN, null, None, ? or -).
    layout : {"auto", "triples", "dense"}
        What the lines of a text file are; see :func:`fastrfm.readers.layout.detect_layout` for "auto".
    indexed : bool
        Take the first two columns of triples as zero-based positions instead of names.
    memory : int, optional
        Bytes that the observations of an HDF5 file may take; see :func:`fastrfm.store.open_observations`.

    Returns
    -------
    Observations or, of HDF5, StoredObservations
        Of triples, unless `indexed`, the labels become names: ascending if all labels of an axis are whole numbers,
        else in order of first appearance.

    Raises
    ------
    MissingFileError
        If there is no such file.
    FileFormatError
        If the file cannot be read or understood; for text the message names the line.
    InputError
        If a pair occurs twice, a value is infinite, nothing is observed, or `layout` and `indexed` do not apply.
    """
    return read_with_notes(path, layout=layout, indexed=indexed, memory=memory).observations


def read_with_notes(path: Any, *, layout: str = "auto", indexed: bool = False, memory: int | None = None) -> Reading:
    """Return the observations of a file together with how it was understood; otherwise :func:`read_observations`."""
    path = Path(path)
    _check_options(layout, indexed)
    kind = file_kind(path)
    check_reading(path, kind, layout, indexed)
    if kind == "text":
        return _read_text(path, layout, indexed)
    if kind == "hdf5":
        from fastrfm.store import open_observations

        return Reading(open_observations(path, memory=memory), "HDF5")
    from fastrfm.readers import binary

    observations, words = _named(path, getattr(binary, f"read_{kind}"), read_bytes(path), path.name)
    return Reading(observations, words)


def _check_options(layout: str, indexed: bool) -> None:
    if layout not in LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if indexed and layout == "dense":
        raise InputError("zero-based positions (indexed) belong to triples, not to a dense layout: leave one out")


def check_reading(path: Path, kind: str, layout: str, indexed: bool) -> None:
    """Refuse options that do not exist or do not apply to a file of this :func:`file_kind`."""
    _check_options(layout, indexed)
    if kind != "text" and (indexed or layout != "auto"):
        what = "indexed" if indexed else "layout"
        raise InputError(f"{path.name} is not a text file, so {what} has no meaning for it: leave it out")


def file_kind(path: Path) -> str:
    """Return "hdf5", "npy", "npz", "mtx" or "text", by the first bytes of a file and, for HDF5, by its name.

    Raises
    ------
    MissingFileError, FileFormatError
        If the file is absent, cannot be read, or is not what its name says.
    """
    start = read_start(path)
    for kind, magic in _MAGIC.items():
        if start.startswith(magic):
            return kind
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in _HDF5_SUFFIXES:
        return "hdf5"  # a user block may precede the signature; the store knows, and has the words if it is none
    if suffix in (".npy", ".npz", ".mtx"):
        raise FileFormatError(f"{path.name} is called {suffix} but does not start like one: is it complete?")
    return "text"


def _read_text(path: Path, layout: str, indexed: bool) -> Reading:
    from fastrfm.readers.dense import read_dense
    from fastrfm.readers.triples import read_triples

    opening = open_lines(path, layout, indexed)
    with opening.telling():
        if opening.layout == "triples":
            observations = _named(path, read_triples, opening.stream, indexed, opening.notes)
        else:
            stream = opening.stream
            text = stream.head if stream.is_whole else open_text(path)
            observations = _named(path, read_dense, text, opening.notes)
    return Reading(observations, opening.words, opening.notes)


@dataclass(frozen=True, eq=False)
class TextOpening:
    """A text file of which the start has been looked at: the stream, its layout ("triples" or "dense"), notes."""

    stream: TextStream
    layout: str
    guess: str
    notes: list[str]

    @property
    def words(self) -> str:
        """How the file is read."""
        return f"{self.layout}, {self.stream.head.delimiter_name}"

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Add to errors that the layout was a guess, if it was."""
        try:
            yield
        except FastrfmError as error:
            raise type(error)(f"{error} ({self.guess})" if self.guess else str(error)) from None


def open_lines(path: Path, layout: str, indexed: bool) -> TextOpening:
    """Look at the start of a text file, and find its layout where that is "auto"."""
    stream = open_stream(path)
    guess = ""
    layout = "triples" if indexed else layout
    if layout == "auto":
        layout, guess = detect_layout(stream.head)
    return TextOpening(stream, layout, guess, [guess] if guess else [])


def _named(path: Path, reader: Any, *args: Any) -> Any:
    """Call a reader; put the file's name before errors about its numbers that do not carry it yet."""
    try:
        return reader(*args)
    except FastrfmError as error:
        if str(error).startswith(path.name):
            raise
        raise type(error)(f"{path.name}: {error}") from None
