"""Text files as records of fields: bytes, gz, encoding, comments, delimiter, quoting and line numbers.

Second step for text: bytes -> ``Text`` -> (line number, fields). Knows nothing of matrices. A file is read whole here;
``stream`` reads it block by block.
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
from typing import IO, cast

from fastrfm.errors import FileFormatError, MissingFileError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "<na>", "?", "-"})

_GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
DOUBLE_COLON = "separated by ::"
_SAMPLE_LINES = 200
_DELIMITER_NAMES = {
    "\t": "tab separated",
    "::": DOUBLE_COLON,
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
        return split_records(self, self.lines(), has_quotes=b'"' in self.content)

    def error(self, line: int, problem: str) -> FileFormatError:
        """Return, to be raised, the error that names file, line and problem."""
        return FileFormatError(f"{self.name}, line {line}: {problem}")


def split_records(text: Text, lines: Iterable[str], *, has_quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield what :meth:`Text.records` does from `lines`, the first of which is number ``text.first_line``."""
    if text.delimiter is None and not has_quotes:
        for number, line in enumerate(lines, text.first_line):
            if fields := line.split():
                yield number, fields
        return
    # A quoted field may span lines: a record's number is that of its first line.
    reader = csv.reader(lines, delimiter=text.delimiter or " ", skipinitialspace=True, strict=True)
    start = text.first_line
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise text.error(start, f"not well-formed ({error}): check the quotes") from None
        fields = [field.strip() for field in fields]
        if text.delimiter is None and fields and not fields[-1]:
            fields.pop()  # blanks at the end of a line
        if any(fields) or len(fields) > 1:
            yield start, fields
        start = text.first_line + reader.line_num


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
    return make_text(path.name, read_bytes(path))


def make_text(name: str, content: bytes) -> Text:
    """Return the text that `content`, the start of a file or all of it, holds; as :func:`open_text` from there on."""
    content = content.removeprefix(BOM)
    check_encoding(content, name)
    content, first_line = skip_comments(content)
    if not content.strip():
        raise FileFormatError(f"{name} is empty: it has no line with data")
    delimiter = _find_delimiter(content)
    delimiter_name = _DELIMITER_NAMES[delimiter]
    if delimiter_name == DOUBLE_COLON:  # neither csv nor our parser splits at two characters
        content, delimiter = content.replace(b"::", b"\t"), "\t"
    return Text(name, content, first_line, delimiter, delimiter_name)


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
    with opened(path) as (unpacked, _):
        return unpacked.read(size)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Yield the bytes of a file, unpacked if it is gz, and the file itself; errors as :func:`read_start`."""
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == _GZIP
            file.seek(0)
            if not is_packed:
                yield file, file
                return
            with gzip.open(file) as unpacked:
                yield cast(IO[bytes], unpacked), file
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise FileFormatError(f"{path}: is a folder, name a file in it") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileFormatError(f"{path.name} is damaged or not complete gz data ({error})") from None
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read, {error.strerror or error}") from None


def check_encoding(content: bytes, name: str, first_line: int = 1) -> None:
    """Refuse what is not UTF-8 text, naming the line; `content` starts at line `first_line`."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FileFormatError(f"{name} is UTF-16 text: save it as UTF-8")
    if b"\0" in content[:4096]:
        raise FileFormatError(
            f"{name} is neither text nor a known format: give csv, tsv, npy, npz, Matrix Market or HDF5"
        )
    if content.isascii():
        return
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + first_line
        byte = content[error.start]
        raise FileFormatError(f"{name}, line {line}: byte 0x{byte:02x} is not UTF-8: save the file as UTF-8") from None


def skip_comments(content: bytes) -> tuple[bytes, int]:
    """Return the content after the comment (and blank) lines at its top, and its first line number."""
    position, line = 0, 1
    while position < len(content):
        end = content.find(b"\n", position) + 1 or len(content)
        text = content[position:end].strip()
        if text and not text.startswith((b"#", b"%")):
            break
        position, line = end, line + 1
    return content[position:], line


def _find_delimiter(content: bytes) -> str | None:
    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline=None)
    sample = [_without_quoted(line) for line in islice(lines, _SAMPLE_LINES) if line.strip()]
    best, most = None, len(sample) / 2  # half of the lines, so that a damaged one does not hide the mark
    for mark in ("\t", "::", ";", ","):
        counts = Counter(line.count(mark) for line in sample)
        del counts[0]
        agreeing = max(counts.values(), default=0)
        if agreeing > most or (best is None and agreeing and agreeing >= most):
            best, most = mark, agreeing
    return best


def _without_quoted(line: str) -> str:
    return "".join(line.split('"')[::2]) if '"' in line else line
