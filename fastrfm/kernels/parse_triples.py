"""Lines of plain numbers (row, column, value, ...) in bytes to arrays: the quick way through ordinary files.

A label is a whole number as people write it, at most 18 digits. A value is the double that Python's ``float`` gives,
or is left to the caller by its place. Of at most 18 digits, it takes one operation on exact operands if it fits in 53
bits, times or over a power of ten up to 22; if it is longer, a quotient of twice the precision, kept where its error
cannot change the rounding. Whatever else a line holds is "odd", and the
caller reads the block in another way. Not here: quotes, words, encodings, messages.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastrfm._numba import exact_inner, exact_kernel

BYTES_PER_RECORD = 5  # the shortest: 1,2, and the end of the line, without a value
_NEWLINE, _RETURN, _BLANK, _TAB, _PLUS, _MINUS, _POINT, _ZERO, _NINE = 10, 13, 32, 9, 43, 45, 46, 48, 57
_EXACT_BELOW = 1 << 53
_MOST_DIGITS = 18
_POWERS = np.array([10.0**k for k in range(23)])


@exact_inner
def _skip_blanks(content, at, takes_tabs):
    while content[at] == _BLANK or (takes_tabs and content[at] == _TAB):
        at += 1
    return at


@exact_inner
def _is_line_end(content, at):
    return content[at] == _NEWLINE or (content[at] == _RETURN and content[at + 1] == _NEWLINE)


@exact_inner
def _parse_label(content, at):
    """Return a whole number and the place after it; -1 as place if there is none."""
    is_negative = content[at] == _MINUS
    if is_negative:
        at += 1
    first = at
    number = np.int64(0)
    while content[at] >= _ZERO and content[at] <= _NINE:
        if at - first == _MOST_DIGITS:
            return np.int64(0), -1
        number = number * 10 + np.int64(content[at] - _ZERO)
        at += 1
    if at == first or (content[first] == _ZERO and (at - first > 1 or is_negative)):
        return np.int64(0), -1
    return (-number if is_negative else number), at


@exact_inner
def _parse_digits(content, at, number, n_digits):
    """Append digits to a number; return it, its digits without leading zeros (19 if too many) and the place after."""
    while content[at] >= _ZERO and content[at] <= _NINE:
        if n_digits < _MOST_DIGITS:
            number = number * 10 + np.int64(content[at] - _ZERO)
            if number > 0:
                n_digits += 1
        else:
            n_digits = _MOST_DIGITS + 1
        at += 1
    return number, n_digits, at


@exact_inner
def _split(number):
    """Return two doubles of 26 bits each that add up to a double (Veltkamp)."""
    spread = number * 134217729.0
    high = spread - (spread - number)
    return high, number - high


@exact_inner
def _divide_long(number, divisor):
    """Return number / divisor, rounded once, and whether that is certain; a whole number and a power of ten <= 1e22.

    First quotient q, exact remainder r by Dekker's product, second quotient r / divisor, known to 51 bits: the sum
    is right if moving the second by far more than its error leaves the sum as it is.
    """
    top = np.float64(number)
    rest = np.float64(number - np.int64(top))
    first = top / divisor
    product = first * divisor
    a_high, a_low = _split(first)
    b_high, b_low = _split(divisor)
    missing = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    second = (((top - product) - missing) + rest) / divisor
    margin = abs(second) * 2.0**-45
    return first + (second + margin), first + (second + margin) == first + (second - margin)


@exact_inner
def _parse_value(content, at):
    """Return a number, the place after it and whether the number is exact; if not, the place means nothing."""
    is_negative = content[at] == _MINUS
    if is_negative or content[at] == _PLUS:
        at += 1
    first = at
    number, n_digits, at = _parse_digits(content, at, np.int64(0), 0)
    n_written = at - first
    exponent = 0
    if content[at] == _POINT:
        first = at + 1
        number, n_digits, at = _parse_digits(content, first, number, n_digits)
        n_written += at - first
        exponent = first - at
    if n_written == 0 or n_digits > _MOST_DIGITS:
        return 0.0, at, False
    if content[at] == 69 or content[at] == 101:  # E or e
        at += 1
        falls = content[at] == _MINUS
        if falls or content[at] == _PLUS:
            at += 1
        first = at
        power, n_digits, at = _parse_digits(content, at, np.int64(0), 0)
        if at == first or n_digits > 4:
            return 0.0, at, False
        exponent += -power if falls else power
    if exponent < -22 or exponent > 22:
        return 0.0, at, False
    value = np.float64(number)
    if number > _EXACT_BELOW:
        if exponent > 0:
            return 0.0, at, False
        is_certain = True  # a whole number alone is rounded once
        if exponent < 0:
            value, is_certain = _divide_long(number, _POWERS[-exponent])
        return (-value if is_negative else value), at, is_certain
    value = value / _POWERS[-exponent] if exponent < 0 else value * _POWERS[exponent]
    return (-value if is_negative else value), at, True


@exact_inner
def _count_rest(content, at, separator, takes_blanks):
    """Return the number of fields from the separator (or line end) at `at` on, and the line end; -1 if odd."""
    n_fields = 0
    was_blank = False
    while not _is_line_end(content, at):
        mark = content[at]
        if mark < _BLANK and mark != _TAB:
            return -1, at
        if takes_blanks:
            is_blank = mark in (_BLANK, _TAB)
            if was_blank and not is_blank:
                n_fields += 1
            was_blank = is_blank
        elif mark == separator:
            n_fields += 1
        at += 1
    return n_fields, at


@exact_inner
def _parse_lines(content, start, stop, separator, n_columns, rows, cols, values, places, lines, first):
    """Parse the lines in ``content[start:stop]`` into the outputs from `first` on; return how many records and lines.

    The number of records is -1 if a line is odd.
    """
    takes_blanks = separator < 0
    record, n_lines, at = first, 0, start
    while at < stop:
        at = _skip_blanks(content, at, takes_blanks)
        if not _is_line_end(content, at):
            for column in range(2):
                label, at = _parse_label(content, _skip_blanks(content, at, takes_blanks))
                if at < 0:
                    return -1, n_lines
                if column == 0:
                    rows[record] = label
                else:
                    cols[record] = label
                after = _skip_blanks(content, at, takes_blanks)
                if (takes_blanks and after == at) or (not takes_blanks and content[after] != separator):
                    return -1, n_lines
                at = after if takes_blanks else after + 1
            at = _skip_blanks(content, at, takes_blanks)
            if takes_blanks and _is_line_end(content, at):
                return -1, n_lines
            begin = at
            value, at, is_exact = _parse_value(content, begin)
            if is_exact:
                after = at if takes_blanks else _skip_blanks(content, at, False)
                is_exact = (
                    _is_line_end(content, after)
                    or content[after] == separator
                    or (takes_blanks and (content[after] == _BLANK or content[after] == _TAB))
                )
                at = after
            places[record, 1] = 0
            if not is_exact:
                at = begin
                while not (
                    _is_line_end(content, at)
                    or content[at] == separator
                    or (takes_blanks and (content[at] == _BLANK or content[at] == _TAB))
                ):
                    if content[at] < _BLANK and content[at] != _TAB:
                        return -1, n_lines
                    at += 1
                places[record, 0], places[record, 1] = begin, max(at, 1)
            values[record] = value
            lines[record] = n_lines
            n_fields, at = _count_rest(content, at, separator, takes_blanks)
            if n_fields != n_columns - 3:
                return -1, n_lines
            record += 1
        at += 2 if content[at] == _RETURN else 1
        n_lines += 1
    return record - first, n_lines


@exact_kernel
def parse_triples(content, bounds, separator, n_columns, rows, cols, values, places, lines, counts):
    """Parse lines of plain numbers.

    Parameters
    ----------
    content : (n_bytes,) uint8
        ASCII without quotes; the last byte is a newline.
    bounds : (n_tasks + 1,) int64
        Where each task begins: at the start of a line.
    separator : int
        Byte between two fields; -1 for runs of blanks and tabs.
    n_columns : int
        Fields of every line; the first three are row, column and value.
    rows, cols : (n_bytes // 5,) int64, written
        Labels. Task t writes its records one after another from place ``bounds[t] // 5`` on.
    values : (n_bytes // 5,) float64, written
    places : (n_bytes // 5, 2) int64, written
        Start and end of a value that the caller has to read; the end is 0 where `values` holds it.
    lines : (n_bytes // 5,) int64, written
        Line of each record, from 0 within its task.
    counts : (n_tasks, 2) int64, written
        Records, -1 if a line is odd, and lines of each task.
    """
    for task in prange(bounds.size - 1):
        start, stop = bounds[task], bounds[task + 1]
        counts[task, 0], counts[task, 1] = _parse_lines(
            content, start, stop, separator, n_columns, rows, cols, values, places, lines, start // BYTES_PER_RECORD
        )
