"""What a batch completes and where to: inputs as people give them become jobs, one for each matrix.

Flow: arguments -> ``find_jobs`` -> ``check_outputs`` -> ``complete_many``, which runs the jobs. A result is named after
its file, and after the dataset inside it where one is named, never after the other inputs, so that ``--resume`` finds
it again. Everything that can be refused before the work begins is refused here.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from fastrfm.atomic import check_output
from fastrfm.cli.common import count
from fastrfm.errors import FastrfmError, FileFormatError, InputError, OutputExistsError, WriteError
from fastrfm.options import CompletionOptions

ALL = "*"


@dataclass(frozen=True)
class Settings:
    """What all inputs have in common; `n_workers` is how many processes share the cores."""

    options: CompletionOptions
    holdout: float | None
    resume: bool
    force: bool
    n_workers: int


@dataclass(frozen=True)
class Job:
    """One matrix to complete: a file, or what `dataset` names inside it; with a `problem` there is nothing to do."""

    source: Path
    dataset: str | None
    output: Path
    problem: str = ""

    @property
    def label(self) -> str:
        return printable(self.source if self.dataset is None else f"{self.source}::{self.dataset}")

    @property
    def identity(self) -> str:
        """The label with the whole path."""
        return replace(self, source=Path(os.path.realpath(self.source))).label


def find_jobs(inputs: tuple[str, ...], outdir: Path) -> list[Job]:
    """Return one job for each matrix that the inputs name, in their order, each once.

    Raises
    ------
    click.UsageError
        If a pattern matches nothing, a folder holds no .h5 file, or "::" is followed by nothing.
    """
    jobs: dict[tuple[str, Path], Job] = {}
    for text in inputs:
        pattern, mark, inside = (text, "", "") if os.path.exists(text) else text.partition("::")
        if mark and not inside.strip("/"):
            raise click.UsageError(f"{text}: a dataset's name, or *, must follow '::'")
        for source in _files(pattern):
            for job in _jobs_of(source, inside, outdir):
                jobs.setdefault((job.identity, job.output), job)
    if not jobs:
        raise click.UsageError(f"{', '.join(inputs)}: only folders without .h5 files")
    return list(jobs.values())


def _files(pattern: str) -> Iterator[Path]:
    """Yield the files that a path, a folder or a pattern stands for; a missing file too, which then fails."""
    is_pattern = glob.has_magic(pattern) and not os.path.exists(pattern)
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))] if is_pattern else [Path(pattern)]
    if not found:
        raise click.UsageError(f"{pattern}: no file matches")
    for path in found:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(child for child in path.glob("*.h5") if not child.name.startswith(".") and child.is_file())
        if not inside and not is_pattern:
            raise click.UsageError(f"{path}: the folder holds no .h5 file")
        yield from inside


def _jobs_of(source: Path, inside: str, outdir: Path) -> Iterator[Job]:
    stem = source.name.removesuffix(source.suffix)
    if not inside:
        yield Job(source, None, outdir / f"{stem}.h5")
        return
    names = [inside]
    if inside == ALL:
        try:
            names = matrices_in(source)
        except FastrfmError as error:
            yield Job(source, ALL, outdir / f"{stem}.h5", problem=str(error).removeprefix(f"{source}: "))
            return
    for name in names:
        name = name.strip("/")
        yield Job(source, f"/{name}", outdir / f"{stem}--{name.replace('/', '--')}.h5")


def matrices_in(path: Path) -> list[str]:
    """Return the names of all 2-D datasets of numbers, csr_matrix and csc_matrix groups of an HDF5 file.

    Raises
    ------
    MissingFileError, FileFormatError
        If the file is missing or cannot be read, or if it holds none.
    """
    import h5py

    from fastrfm._hdf5 import reading

    found: list[str] = []

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group):
            is_matrix = item.attrs.get("encoding-type") in ("csr_matrix", "csc_matrix")
        else:
            is_matrix = isinstance(item, h5py.Dataset) and len(item.shape or ()) == 2 and item.dtype.kind in "iuf"
        if is_matrix:
            found.append(name)

    with reading(path) as file:
        file.visititems(look)
        if not found:
            raise FileFormatError("holds no 2-D dataset of numbers and no csr_matrix: see `fastrfm convert`")
    return found


def make_folder(path: Path) -> None:
    """Make the folder of the results, unless it is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: the folder cannot be made, {error.strerror}: choose another") from None


def check_outputs(jobs: list[Job], table: Path, settings: Settings) -> None:
    """Make sure, before any work, that no two outputs and no input meet and that nothing is replaced unasked.

    Raises
    ------
    InputError
        If two inputs would have the same output.
    OutputExistsError, WriteError
        If an output or the table exists, is an input, or cannot be written.
    """
    sources = {os.path.realpath(job.source): job.source for job in jobs}
    takers: dict[str, Job] = {}
    existing = []
    for job in jobs:
        if job.problem:
            continue
        target = os.path.realpath(job.output)
        other = takers.setdefault(target, job)
        if other is not job:
            raise InputError(
                f"{other.label} and {job.label} would both be written to {job.output}: rename one, or complete them "
                "in two runs with two folders"
            )
        check_output(job.output, force=True, source=sources.get(target))
        if job.output.exists():
            existing.append(job.output)
    if existing and not (settings.resume or settings.force):
        raise OutputExistsError(
            f"{len(existing)} of {count(len(jobs), 'result')} exist already, the first is {existing[0]}: use --resume "
            "to complete the others, or --force to replace them"
        )
    target = os.path.realpath(table)
    if target in takers:
        raise WriteError(f"{table}: is the result of {takers[target].label}: give the summary another name")
    check_output(table, force=settings.force or settings.resume, source=sources.get(target))


def printable(text: str | Path) -> str:
    """Return a name or message without bytes that are no text."""
    return click.format_filename(str(text))
