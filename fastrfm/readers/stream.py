"""Text files block by block: what the start of a file tells of all of it, then whole lines in bounded pieces.

Second step for text that need not fit in memory. A ``TextStream`` knows delimiter and header from the first records
and hands out ``Text`` pieces that know their line numbers, as often as asked. Not here: what the fields mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from fastrfm.errors import FileFormatError
from fastrfm.readers.text import (
    BOM,
    DOUBLE_COLON,
    Text,
    check_encoding,
    make_text,
    opened,
    skip_comments,
    split_records,
)

BLOCK_BYTES = 1 << 23
HEAD_RECORDS = 1001
_HEAD_BYTES = 1 << 20
_LONGEST_LINE = 1 << 26
_LINE_END = re.compile(rb"\r\n|\r|\n|$")


@dataclass
class TextStream:
    """A text file that is read in blocks.

    Attributes
    ----------
    path : pathlib.Path
    head : Text
        The first lines, at least a thousand records of them, or all.
    raw : bytes
        The content of `head` as it is in the file.
    is_whole : bool
        Whether `head` is all of the file.
    is_packed : bool
        Whether the file is gz.
    n_skipped : int
        Bytes of the unpacked file before the first record of data.
    first_line : int
        Line number, from 1, at which the data start.
    n_columns : int
        Fields of every record, once that is known.
    n_bytes : int
        Size of the file on disk.
    position : int
        Bytes on disk that have been read so far, for progress.
    """

    path: Path
    head: Text
    raw: bytes
    is_whole: bool
    is_packed: bool
    n_skipped: int
    first_line: int
    n_bytes: int
    n_columns: int = 0
    position: int = 0

    def skip_header(self) -> None:
        """Leave the first record out of the blocks."""
        end, n_lines = 0, 0
        for found in _LINE_END.finditer(self.raw):
            end, n_lines = found.end(), n_lines + 1
            try:  # a quoted field may span lines
                if list(replace(self.head, content=self.raw[:end].replace(b"::", b"\t")).records()):
                    break
            except FileFormatError:
                continue
        self.n_skipped += end
        self.first_line += n_lines

    def blocks(self, n_bytes: int = BLOCK_BYTES) -> Iterator[Text]:
        """Yield the data in pieces of about `n_bytes` that end with a line.

        Raises
        ------
        FileFormatError
            If the file cannot be read to its end, is not UTF-8, or a line is longer than 64 MiB.
        """
        line, rest = self.first_line, b""
        with opened(self.path) as (unpacked, file):
            _skip(unpacked, self.n_skipped)
            while piece := unpacked.read(n_bytes):
                self.position = file.tell()
                content = rest + piece
                end = _last_line_end(content)
                content, rest = content[:end], content[end:]
                if len(rest) > _LONGEST_LINE:
                    raise FileFormatError(
                        f"{self.path.name}, line {line}: is longer than {_LONGEST_LINE} bytes: is the file text?"
                    )
                if content:
                    yield self._piece(content, line)
                    line += _count_lines(content)
            if rest:
                yield self._piece(rest, line)

    def _piece(self, content: bytes, line: int) -> Text:
        check_encoding(content, self.path.name, line)
        if self.head.delimiter_name == DOUBLE_COLON:
            content = content.replace(b"::", b"\t")
        return replace(self.head, content=content, first_line=line)


def open_stream(path: Path) -> TextStream:
    """Return a text file to be read in blocks; errors as :func:`fastrfm.readers.text.open_text`."""
    size = _HEAD_BYTES
    with opened(path) as (unpacked, file):
        is_packed = unpacked is not file
        content = unpacked.read(size)
        while True:
            is_whole = len(content) < size
            start = content if is_whole else content[: _last_line_end(content)] or content
            if is_whole or size >= _LONGEST_LINE or _has_enough(path.name, start):
                break
            content += unpacked.read(3 * size)
            size *= 4
    head = make_text(path.name, start)
    raw, _ = skip_comments(start.removeprefix(BOM))
    sizes = len(start) - len(raw), head.first_line, path.stat().st_size
    return TextStream(path, head, raw, is_whole, is_packed, *sizes)


@dataclass(frozen=True)
class StreamedText(Text):
    """A text file that is read anew whenever its lines are asked for; `content` holds its start alone.

    Attributes
    ----------
    stream : TextStream
    is_quoted : bool
        Whether quotes are looked for.
    """

    stream: TextStream
    is_quoted: bool

    def lines(self) -> Iterator[str]:
        for piece in self.stream.blocks():
            yield from piece.lines()

    def records(self) -> Iterator[tuple[int, list[str]]]:
        return split_records(self, self.lines(), has_quotes=self.is_quoted)


def stream_text(path: Path) -> StreamedText:
    """Return a text file whose records are read block by block; errors as :func:`fastrfm.readers.text.open_text`."""
    stream = open_stream(path)
    is_quoted = stream.head.delimiter is not None or any(b'"' in piece.content for piece in stream.blocks())
    return StreamedText(**vars(stream.head), stream=stream, is_quoted=is_quoted)


def _has_enough(name: str, content: bytes) -> bool:
    try:
        return sum(1 for _ in islice(make_text(name, content).records(), HEAD_RECORDS)) == HEAD_RECORDS
    except FileFormatError:  # comments only so far, or cut within quotes; what is wrong stays so
        return False


def _skip(file: IO[bytes], n_bytes: int) -> None:
    while n_bytes > 0:
        n_bytes -= len(file.read(min(n_bytes, BLOCK_BYTES))) or n_bytes


def _last_line_end(content: bytes) -> int:
    """Return the place after the last whole line; a file may end its lines by carriage returns alone."""
    return content.rfind(b"\n") + 1 or content.rfind(b"\r", 0, len(content) - 1) + 1


def _count_lines(content: bytes) -> int:
    # bytes.count stops at each newline; comparing all bytes is several times as fast.
    n_feeds = int(np.count_nonzero(np.frombuffer(content, dtype=np.uint8) == ord("\n")))
    n_returns = content.count(b"\r")
    return n_feeds + (n_returns - content.count(b"\r\n") if n_returns else 0)
