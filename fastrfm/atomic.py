"""Writing a file so that nobody ever sees half of it.

Used by ``store`` and by the command for every output: write aside in the same folder, flush to the disk, then give
the file its name in one step. Whatever was there before stays whole until that step; after a failure it still is.
Work that needs room on the disk first gets a scratch folder there. Not here: what goes into the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from fastrfm.errors import FastrfmError, OutputExistsError, WriteError

PathLike = str | os.PathLike[str]


def check_output(path: PathLike, *, force: bool = False, source: PathLike | None = None) -> None:
    """Make sure that a file can be written at `path`; cheap, so worth calling before a long computation.

    Parameters
    ----------
    path : str or path
    force : bool
        Whether an existing file may be replaced.
    source : str or path, optional
        The file that the output is made from; it is never replaced.

    Raises
    ------
    OutputExistsError
        If the file exists and `force` is false.
    WriteError
        If `path` is `source`, if the folder does not exist, is not a folder or does not let us write, or if `path` is
        something other than a regular file (a folder, a device).
    """
    target = _real(path)
    if source is not None and target == _real(source):
        raise WriteError(f"{path}: is the input itself and is kept: give the output another name")
    folder = target.parent
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise WriteError(f"{path}: cannot be written, the folder {folder} {problem}: make it first")
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "not a regular file"
        raise WriteError(f"{path}: cannot be written, it is {kind}: give the name of a file")
    if target.exists() and not force:
        raise _exists(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise WriteError(f"{path}: cannot be written, no permission to write in the folder {folder}")


@contextlib.contextmanager
def writing(path: PathLike, force: bool = False, *, folder: Path | None = None) -> Iterator[Path]:
    """Yield the path of an empty file to fill; it becomes `path` when the block ends, unless the block fails.

    Parameters
    ----------
    path : str or path
        Final name. A symbolic link is followed: the file that it points at is replaced.
    force : bool
        Whether an existing file may be replaced. Without it, a file that appears meanwhile is not replaced either.
    folder : path, optional
        Where the new file is made, on the file system of `path`; by default in the same folder.

    Yields
    ------
    pathlib.Path
        A new file, its name starting with "."; close what you open there inside the block.

    Raises
    ------
    OutputExistsError
        If the file exists, at the start or at the end, and `force` is false.
    WriteError
        As :func:`check_output`; also if the block or the disk fails (OSError, or the RuntimeError and ValueError in
        which h5py wraps such failures). KeyboardInterrupt and other exceptions pass through. In every case the file
        aside is removed and what was at `path` before is untouched.
    """
    check_output(path, force=force)
    target = _real(path)
    aside = (folder or target.parent) / f".fastrfm-{secrets.token_hex(8)}.part"
    try:
        try:
            # Not tempfile.mkstemp: it makes files that only their owner may read, and the output would stay so.
            os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield aside
            _flush(aside, os.O_RDWR)
            if target.exists():
                shutil.copymode(target, aside)
            _publish(aside, target, path, force)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
    except FastrfmError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise _failed(path, error) from error


@contextlib.contextmanager
def scratch_folder(path: PathLike) -> Iterator[Path]:
    """Yield a new folder beside `path` for what comes before the output; it goes, with all in it, when the block ends.

    Folders that killed processes left there are removed first. A process holds a lock on a file in its own, which the
    system lets go when the process ends, however it ends; so nobody removes a folder that is in use.

    Raises
    ------
    WriteError
        If the folder cannot be made or the block fails with OSError (the disk is full, ...).
    """
    parent = _real(path).parent
    _remove_abandoned(parent)
    scratch = parent / f".fastrfm-{secrets.token_hex(8)}.scratch"
    lock = None
    try:
        os.mkdir(scratch, 0o700)
        lock = _lock(scratch)
        yield scratch
    except FastrfmError:
        raise
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(scratch: Path) -> int | None:
    """Return the open lock of a scratch folder; it gets its name when it is locked, so that none is seen unlocked."""
    handle = os.open(scratch / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a file system without locks: the folder is left alone by others
        os.close(handle)
        return None
    os.rename(scratch / "new", scratch / "lock")
    return handle


def _remove_abandoned(parent: Path) -> None:
    for scratch in parent.glob(".fastrfm-*.scratch"):
        with contextlib.suppress(OSError):  # in use, another's, or gone already
            handle = os.open(scratch / "lock", os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(scratch)
            finally:
                os.close(handle)


def _failed(path: PathLike, error: BaseException) -> WriteError:
    return WriteError(
        f"{path}: writing failed, {_cause(error)}; nothing was changed there: free space or choose another place"
    )


def _publish(aside: Path, target: Path, path: PathLike, force: bool) -> None:
    if force:
        os.replace(aside, target)
    else:
        try:
            os.link(aside, target)  # unlike a rename, a link never replaces what appeared meanwhile
        except FileExistsError:
            raise _exists(path) from None
        except OSError:
            _claim(aside, target, path)
    # The new name is in place by now. Some file systems cannot flush a folder, which is no reason to report failure.
    with contextlib.suppress(OSError):
        _flush(target.parent, os.O_RDONLY)


def _claim(aside: Path, target: Path, path: PathLike) -> None:
    """Take the name with an empty file, then replace that file: for file systems without hard links."""
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        raise _exists(path) from None
    try:
        os.replace(aside, target)
    except BaseException:
        os.unlink(target)
        raise


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _real(path: PathLike) -> Path:
    return Path(os.path.realpath(path))


def _exists(path: PathLike) -> OutputExistsError:
    return OutputExistsError(f"{path}: exists already and is kept: use --force (force=True) to replace it")


def _cause(error: BaseException) -> str:
    """Return one line; of h5py's long messages (addresses, offsets, time) only the system's own words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    quoted = re.search(r"error message = '([^']+)'", text)
    return quoted.group(1) if quoted else " ".join(text.split())
