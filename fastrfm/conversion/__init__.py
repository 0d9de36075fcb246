"""Any readable file to our HDF5: in memory, or, for triples in text or HDF5, by row buckets on disk within a budget.

Flow of the large way: source -> ``scan`` (counts, names; text is spooled as codes) -> ``Buckets`` in a scratch folder
beside the output -> rows in order -> the file, written aside and renamed. What stays in memory whatever the budget:
names and their codes, and 24 bytes for each row. A row with more entries than a bucket is a bucket of its own. The
result is the file that ``read_observations`` and ``write_observations`` make.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrfm._interrupt import deferred
from fastrfm._memory import default_memory
from fastrfm.atomic import check_output, scratch_folder
from fastrfm.errors import InputError
from fastrfm.readers import TextOpening, check_reading, file_kind, open_lines, read_with_notes
from fastrfm.store import write_observations

if TYPE_CHECKING:
    from fastrfm.conversion.sources import Source

_SMALL_BYTES = 1 << 23  # of input: below, starting the large way costs more than it saves
_GROWTH = 16  # memory that reading a file whole takes, as a multiple of its bytes
_PACKED = 8  # text in a gz file, likewise
_SCANNED, _FILLED = 0.6, 0.8  # shares of the work


@dataclass(frozen=True)
class Conversion:
    """What was converted: how the input was read, in words, and the sizes of the output."""

    layout: str
    shape: tuple[int, int]
    n_observed: int
    named: tuple[bool, bool]
    notes: list[str] = field(default_factory=list)


def convert(
    source: Any,
    destination: Any,
    *,
    layout: str = "auto",
    indexed: bool = False,
    force: bool = False,
    memory: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Conversion:
    """Write the observations of any readable file to an HDF5 file.

    Parameters
    ----------
    source, destination : str or path-like
    layout, indexed
        As for :func:`fastrfm.readers.read_observations`.
    force : bool
        Whether an existing file may be replaced.
    memory : int, optional
        Bytes that arrays of triples may take; by default a quarter of what is free. A target: what the rows and their
        names need, and a few small buffers, come on top. Other inputs than triples in text or HDF5 are read whole.
    progress : callable, optional
        Called with the share of the work that is done.

    Raises
    ------
    MissingFileError, FileFormatError, InputError
        As :func:`fastrfm.readers.read_observations`.
    OutputExistsError, WriteError
        As :func:`fastrfm.atomic.writing`; what was at `destination` before is then untouched.
    """
    source = Path(source)
    check_output(destination, force=force, source=source)
    kind = file_kind(source)
    check_reading(source, kind, layout, indexed)
    memory = default_memory() if memory is None else memory
    report = progress or (lambda share: None)
    if kind == "text":
        opening = open_lines(source, layout, indexed)
        if opening.layout == "triples" and _is_large(opening.stream.n_bytes, opening.stream.is_packed, memory):
            with opening.telling(), _named(source), scratch_folder(destination) as folder:
                return _convert_text(opening, indexed, destination, force, memory, report, folder)
    if kind == "hdf5" and _is_large(source.stat().st_size, False, memory):
        from fastrfm._hdf5 import reading
        from fastrfm._layout import is_triples

        with reading(source, remedy="") as file:
            if is_triples(file) and "observations" not in file:
                with scratch_folder(destination) as folder:
                    return _convert_datasets(file, source, destination, force, memory, report, folder)
    found = read_with_notes(source, layout=layout, indexed=indexed, memory=memory)
    observations = found.observations
    write_observations(destination, observations, force=force)
    named = observations.row_names is not None, observations.col_names is not None
    return Conversion(found.layout, observations.shape, observations.n_observed, named, found.notes)


def _is_large(n_bytes: int, is_packed: bool, memory: int) -> bool:
    n_bytes *= _PACKED if is_packed else 1
    return n_bytes >= _SMALL_BYTES or n_bytes * _GROWTH > memory


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise error if str(error).startswith(path.name) else InputError(f"{path.name}: {error}") from None


def _convert_text(
    opening: TextOpening, indexed: bool, destination: Any, force: bool, memory: int, progress: Any, folder: Path
) -> Conversion:
    from fastrfm.conversion.sources import TextSource

    source = TextSource(opening.stream, indexed, opening.notes, folder, memory)
    return _convert(source, opening.words, opening.notes, destination, force, memory, progress, folder)


def _convert_datasets(
    file: Any, path: Path, destination: Any, force: bool, memory: int, progress: Any, folder: Path
) -> Conversion:
    from fastrfm._layout import open_triples
    from fastrfm.conversion.sources import DatasetSource

    source = DatasetSource(open_triples(file), memory)
    return _convert(source, "HDF5", [], destination, force, memory, progress, folder)


def _convert(
    source: Source,
    words: str,
    notes: list[str],
    destination: Any,
    force: bool,
    memory: int,
    progress: Callable[[float], None],
    folder: Path,
) -> Conversion:
    from fastrfm.conversion.buckets import Buckets
    from fastrfm.conversion.output import write_buckets
    from fastrfm.conversion.sources import shares

    with contextlib.closing(source):
        with deferred():
            source.scan(shares(progress, 0.0, _SCANNED))
            if not source.n:
                raise InputError("no observations, every entry is missing: give at least one value")
            buckets = Buckets(source, folder, memory)
        with contextlib.closing(buckets):
            with deferred():
                buckets.fill(shares(progress, _SCANNED, _FILLED))
            write_buckets(source, buckets, destination, force, shares(progress, _FILLED, 1.0), folder)
    named = source.row_names is not None, source.col_names is not None
    return Conversion(words, source.shape, source.n, named, notes)
