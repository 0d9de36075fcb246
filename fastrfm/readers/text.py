"""Text files as records of fields: bytes, gz, encoding, comments, delimiter, quoting and line numbers.

Second step for text: bytes -> ``Text`` -> (line number, fields). Knows nothing of matrices. A file is read whole, as
what it becomes has to fit in memory as well.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from fastrfm.errors import FileFormatError, MissingFileError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "<na>", "?", "-"})

_GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
SAMPLE_LINES = 200
_DELIMITER_NAMES = {
    "\t": "tab separated",
    "::": "separated by ::",
    ";": "semicolon separated",
    ",": "comma separated",
    None: "separated by blanks",
}


@dataclass(frozen=True)
class Text:
    """A text file that has been read.

    Attributes
    ----------
    name : str
        File name for messages.
    content : bytes
        UTF-8, without byte order mark and without the comment lines at the top.
    first_line : int
        Line number, from 1, at which `content` starts in the file.
    delimiter : str or None
        One character; None stands for runs of blanks.
    delimiter_name : str
        The delimiter in words, as it is in the file.
    """

    name: str
    content: bytes
    first_line: int
    delimiter: str | None
    delimiter_name: str

    @property
    def has_quotes(self) -> bool:
        """Whether a quotation mark stands anywhere."""
        return b'"' in self.content

    def lines(self) -> Iterable[str]:
        """Return the content as a file of lines, line ends made uniform."""
        return io.TextIOWrapper(io.BytesIO(self.content), encoding="utf-8", newline=None)

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (line number, fields) for each line that is not blank; fields are stripped of outer blanks.

        Raises
        ------
        FileFormatError
            If quotes are not closed or are followed by more than a delimiter.
        """
        if self.delimiter is None and not self.has_quotes:
            for number, line in enumerate(self.lines(), self.first_line):
                if fields := line.split():
                    yield number, fields
            return
        # A quoted field may span lines: a record's number is that of its first line.
        reader = csv.reader(self.lines(), delimiter=self.delimiter or " ", skipinitialspace=True, strict=True)
        start = self.first_line
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self.error(start, f"not well-formed ({error}): check the quotes") from None
            fields = [field.strip() for field in fields]
            if self.delimiter is None and fields and not fields[-1]:
                fields.pop()  # blanks at the end of a line
            if any(fields) or len(fields) > 1:
                yield start, fields
            start = self.first_line + reader.line_num

    def error(self, line: int, problem: str) -> FileFormatError:
        """Return, to be raised, the error that names file, line and problem."""
        return FileFormatError(f"{self.name}, line {line}: {problem}")


def parse_number(field: str) -> float | None:
    """Return the number that a field holds, NaN for a missing one, None if it is neither.

    Examples
    --------
    >>> parse_number("2.5"), parse_number("NA"), parse_number("abc"), parse_number("1_000")
    (2.5, nan, None, None)
    """
    if field.lower() in MISSING:
        return float("nan")
    try:
        return None if "_" in field else float(field)
    except ValueError:
        return None


def open_text(path: Path) -> Text:
    """Read a text file and find its delimiter.

    The delimiter is that of tab, ``::``, semicolon and comma (in doubt the first of them) which occurs equally often,
    outside quotes, in the most of the first 200 lines, if that is half of them or more; else runs of blanks.

    Raises
    ------
    MissingFileError, FileFormatError
        If the file is absent, unreadable, empty, binary or not UTF-8.
    """
    content = read_bytes(path).removeprefix(BOM)
    _check_encoding(content, path.name)
    content, first_line = _skip_comments(content)
    if not content.strip():
        raise FileFormatError(f"{path.name} is empty: it has no line with data")
    delimiter, name = find_delimiter(content)
    if delimiter == "::":  # neither csv nor numpy split at two characters
        content, delimiter = content.replace(b"::", b"\t"), "\t"
    return Text(path.name, content, first_line, delimiter, name)


def read_start(path: Path, size: int = 512) -> bytes:
    """Return the first bytes of a file, unpacked if it is gz.

    Raises
    ------
    MissingFileError, FileFormatError
        If the file is absent or cannot be read.
    """
    return _read(path, size)


def read_bytes(path: Path) -> bytes:
    """Return all bytes of a file, unpacked if it is gz; errors as :func:`read_start`."""
    return _read(path, -1)


def _read(path: Path, size: int) -> bytes:
    with unpacked(path) as file:
        return file.read(size)


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """Yield a file open for reading bytes, unpacked if it is gz; errors are as :func:`read_start`'s."""
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == _GZIP
            file.seek(0)
            if not is_packed:
                yield file
                return
            with gzip.open(file) as content:
                yield cast(BinaryIO, content)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise FileFormatError(f"{path}: is a folder, name a file in it") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileFormatError(f"{path.name} is damaged or not complete gz data ({error})") from None
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read, {error.strerror or error}") from None


def check_start(content: bytes, name: str) -> None:
    """Refuse what is not text of one byte for each ASCII character, judging by its start."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FileFormatError(f"{name} is UTF-16 text: save it as UTF-8")
    if b"\0" in content[:4096]:
        raise FileFormatError(
            f"{name} is neither text nor a known format: give csv, tsv, npy, npz, Matrix Market or HDF5"
        )


def not_utf8(error: UnicodeDecodeError, name: str, lines_before: int = 0) -> FileFormatError:
    """Return, to be raised, the error for text that cannot be decoded, with its line."""
    line = lines_before + error.object.count(b"\n", 0, error.start) + 1
    byte = error.object[error.start]
    return FileFormatError(f"{name}, line {line}: byte 0x{byte:02x} is not UTF-8: save the file as UTF-8")


def _check_encoding(content: bytes, name: str) -> None:
    check_start(content, name)
    if content.isascii():
        return
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(error, name) from None


def _skip_comments(content: bytes) -> tuple[bytes, int]:
    """Return the content after the comment (and blank) lines at its top, and its first line number."""
    position, line = 0, 1
    while position < len(content):
        end = content.find(b"\n", position) + 1 or len(content)
        text = content[position:end].strip()
        if not is_comment(text):
            break
        position, line = end, line + 1
    return content[position:], line


def is_comment(stripped: bytes) -> bool:
    """Return whether a line above the data says nothing: blank, or starting with # or %."""
    return not stripped or stripped.startswith((b"#", b"%"))


def find_delimiter(content: bytes) -> tuple[str | None, str]:
    """Return the delimiter (None: runs of blanks), by the rule of :func:`open_text`, and its name."""
    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline=None)
    sample = [_without_quoted(line) for line in islice(lines, SAMPLE_LINES) if line.strip()]
    best, most = None, len(sample) / 2  # half of the lines, so that a damaged one does not hide the mark
    for mark in ("\t", "::", ";", ","):
        counts = Counter(line.count(mark) for line in sample)
        del counts[0]
        agreeing = max(counts.values(), default=0)
        if agreeing > most or (best is None and agreeing and agreeing >= most):
            best, most = mark, agreeing
    return best, _DELIMITER_NAMES[best]


def _without_quoted(line: str) -> str:
    return "".join(line.split('"')[::2]) if '"' in line else line
