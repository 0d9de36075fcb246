"""Every error and warning that fastrfm raises on purpose.

First layer of the package: imports nothing of it. Each error also derives from the built-in exception that a
Python programmer would catch. Messages name what is wrong, the value got, the value wanted and what to do.
"""


class FastrfmError(Exception):
    """Base of all errors raised on purpose; the command turns it into one line and exit code 1."""


class InputError(FastrfmError, ValueError):
    """The numbers or options given cannot be used (shape, range, NaN, duplicates, ...)."""


class FileFormatError(FastrfmError, ValueError):
    """A file exists but is not what fastrfm can read (not HDF5, truncated, wrong version, missing dataset)."""


class MissingFileError(FastrfmError, FileNotFoundError):
    """A file named by the caller does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "file not found"


class OutputExistsError(FastrfmError, FileExistsError):
    """The output exists already and overwriting was not asked for."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "output exists"


class WriteError(FastrfmError, OSError):
    """Writing failed (disk full, no permission); whatever was at the destination before is untouched."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "writing failed"


class MissingPackageError(FastrfmError, ImportError):
    """What was asked for needs a package of an extra that is not installed."""


class DeviceError(FastrfmError, RuntimeError):
    """A device was asked for that is not there or cannot be used."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The device has too little memory for what has to be on it at once."""


class NotFittedError(FastrfmError, ValueError, AttributeError):
    """An estimator was asked for an answer before ``fit``."""


class NotConvergedWarning(UserWarning):
    """The iteration limit came before the tolerance; the result is usable and its ``stop_reason`` says so."""


class RankWarning(UserWarning):
    """More directions would have counted than the method follows; the result is cut at that many."""


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written; the run goes on, and the checkpoint before is untouched."""


class DeviceWarning(UserWarning):
    """The device that was asked for, if there is one, is not there: the processor does the work."""
