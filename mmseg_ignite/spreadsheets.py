"""CSV files for programs and spreadsheets."""

import csv
import io
import re
from pathlib import Path

from .errors import IgniteError
from .files import atomic_file, printable
from .untrusted import read_text

_FORMULA = re.compile(r"'*[=+\-@\t\n\uff1d\uff0b\uff0d\uff20]")
"""Start of text that a spreadsheet may take for a formula, full-width signs included (OWASP, CSV injection)."""
_NUMBER = re.compile(r'[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?')

Row = dict[str, object]


def csv_cell(value: object) -> object:
    """Prefix text that a spreadsheet would take for a formula with an apostrophe, unless it is a number.

    Carriage returns, which the csv module does not quote, become line feeds. Text that has apostrophes before such a sign
    gets one more, so that :func:`csv_text` restores all text.
    """
    if not isinstance(value, str):
        return value
    value = value.replace('\r\n', '\n').replace('\r', '\n')
    return f"'{value}" if _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value


def csv_text(cell: str) -> str:
    """Return the text that :func:`csv_cell` wrote.

    Example:
        >>> csv_text("'=roi 1"), csv_text('-1'), csv_text("'s")
        ('=roi 1', '-1', "'s")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def read_csv(path: str | Path, remedy: str = 'score the run again') -> list[dict[str, str]]:
    """Read a table that :func:`write_csv` or a user wrote: one dictionary of texts for each row; empty lines are skipped.

    Raises:
        IgniteError: the file cannot be read, or is not such a table; ``remedy`` ends the sentence.
    """
    text = read_text(path)
    try:
        head, *rows = (
            [csv_text(cell) for cell in line] for line in csv.reader(io.StringIO(text, newline=''), strict=True) if line
        )
        return [dict(zip(head, row, strict=True)) for row in rows]
    except (csv.Error, ValueError) as error:  # ValueError: no row, or one of another length
        raise IgniteError(
            f'{printable(path)} is not a CSV table with one cell per column ({error}): {remedy}.'
        ) from error


def write_csv(path: str | Path, rows: list[Row]) -> None:
    """Write rows with equal keys atomically; None becomes an empty cell, numbers are not rounded."""
    with (
        atomic_file(path) as partial,
        open(partial, 'w', newline='', encoding='utf-8', errors='backslashreplace') as stream,
    ):
        writer = csv.writer(stream, lineterminator='\n')
        writer.writerows([csv_cell(cell) for cell in line] for line in (rows[0], *(row.values() for row in rows)))
