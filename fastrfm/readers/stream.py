"""Text files larger than memory: the records of ``text``, read from the disk twice and never held.

The first pass checks the encoding, looks for quotes and finds comments and delimiter as ``text.open_text`` does, so
that nothing is wrong with the bytes once records are handed out; the second yields them.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastrfm.errors import FileFormatError
from fastrfm.readers.text import (
    BOM,
    SAMPLE_LINES,
    Text,
    check_start,
    find_delimiter,
    is_comment,
    not_utf8,
    unpacked,
)

_STEP = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class StreamedText(Text):
    """A text file that is read anew whenever its records are asked for; `content` holds its start alone.

    Attributes
    ----------
    path : pathlib.Path
    offset : int
        Bytes of the unpacked file above the first line with data.
    is_quoted : bool
        Whether a quotation mark stands anywhere in the file.
    """

    path: Path
    offset: int
    is_quoted: bool

    @property
    def has_quotes(self) -> bool:
        return self.is_quoted

    def lines(self) -> Iterator[str]:
        is_double = self.delimiter_name == "separated by ::"
        with unpacked(self.path) as file:
            file.seek(self.offset)
            with io.TextIOWrapper(file, encoding="utf-8", newline=None) as lines:
                for line in lines:
                    yield line.replace("::", "\t") if is_double else line


def stream_text(path: Path) -> StreamedText:
    """Check a text file and find its delimiter, as :func:`fastrfm.readers.text.open_text` does, without keeping it.

    Raises
    ------
    MissingFileError, FileFormatError
        If the file is absent, unreadable, empty, binary or not UTF-8.
    """
    with unpacked(path) as file:
        start = file.read(len(BOM) + 4096)
        check_start(start.removeprefix(BOM), path.name)
    is_quoted = _scan(path)
    with unpacked(path) as file:
        sample, first_line, offset = _sample(file)
    if not sample.strip():
        raise FileFormatError(f"{path.name} is empty: it has no line with data")
    delimiter, words = find_delimiter(sample)
    delimiter = "\t" if delimiter == "::" else delimiter
    return StreamedText(path.name, sample, first_line, delimiter, words, path, offset, is_quoted)


def _scan(path: Path) -> bool:
    """Read a whole file and return whether a quotation mark is in it; refuse what is not UTF-8, with the line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_lines, is_quoted = 0, False
    with unpacked(path) as file:
        while True:
            part = file.read(_STEP)
            try:
                decoder.decode(part, final=not part)
            except UnicodeDecodeError as error:
                raise not_utf8(error, path.name, n_lines) from None
            if not part:
                return is_quoted
            n_lines += part.count(b"\n")
            is_quoted = is_quoted or b'"' in part


def _sample(lines: Iterable[bytes]) -> tuple[bytes, int, int]:
    """Return the first lines below the comments at the top, the number of the first, and the bytes above it."""
    above, n_above = 0, 0
    found: list[bytes] = []
    for line in lines:
        start = len(BOM) if not above and line.startswith(BOM) else 0
        if not found and is_comment(line[start:].strip()):
            above, n_above = above + len(line), n_above + 1
            continue
        if not found:
            above, line = above + start, line[start:]
        found.append(line)
        if len(found) == SAMPLE_LINES:
            break
    return b"".join(found), n_above + 1, above
