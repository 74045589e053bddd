"""The tables of a run as files: CSV for programs and spreadsheets, LaTeX for papers."""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ..files import atomic_file, is_ours, result_file

FOLDER = 'tables'
_FORMULA = re.compile(r'[=+\-@\t\n]')
_NUMBER = re.compile(r'[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?')
_LATEX = {c: rf'\{c}' for c in '&%$#_{}'} | {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '<': r'\textless{}',
    '>': r'\textgreater{}',
    '|': r'\textbar{}',
    '"': r'\textquotedbl{}',
    'µ': r'\textmu{}',
}
_OVERALL = ('mIoU', 'mDice', 'mAcc', 'aAcc', 'fwIoU', 'kappa', 'mIoU_all_classes', 'mDice_all_classes')
_PER_CLASS = ('IoU', 'Dice', 'Precision', 'Recall')

Row = dict[str, object]


def csv_cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe, unless it is a number.

    Carriage returns, which the csv module does not quote, become line feeds.
    """
    if not isinstance(value, str):
        return value
    value = value.replace('\r\n', '\n').replace('\r', '\n')
    return f"'{value}" if _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value


def write_csv(path: str | Path, rows: list[Row]) -> None:
    """Write rows that have the same keys, atomically; None is an empty cell, numbers are unrounded."""
    with (
        atomic_file(path) as partial,
        open(partial, 'w', newline='', encoding='utf-8', errors='backslashreplace') as stream,
    ):
        writer = csv.writer(stream, lineterminator='\n')
        writer.writerow([csv_cell(key) for key in rows[0]])
        writer.writerows([csv_cell(value) for value in row.values()] for row in rows)


def latex_text(text: str) -> str:
    """Text with the characters that mean something to LaTeX escaped, on one line."""
    return ''.join(_LATEX.get(c, c) for c in ' '.join(text.split()))


def _latex_cell(value: object, digits: int = 1) -> str:
    if value is None:
        return '--'
    if isinstance(value, float):
        return f'${value:.{digits}f}$'
    return f'{value:,}' if isinstance(value, int) else latex_text(str(value))


def _latex_row(row: Row, columns: list[str]) -> Iterator[str]:
    digits = 3 if row.get('figure') == 'kappa' else 1
    for key in columns:
        cell = _latex_cell(row[key], digits)
        if row.get(f'{key} low') is not None:
            cell += ' ({}--{})'.format(*(_latex_cell(row[f'{key} {end}'], digits) for end in ('low', 'high')))
        yield cell


def write_latex(path: str | Path, rows: list[Row]) -> None:
    """Write a ``tabular`` of rows that have the same keys, atomically; ``low`` and ``high`` share a column, the interval."""
    columns = [key for key in rows[0] if not key.endswith((' low', ' high'))]
    sides = ''.join('l' if any(isinstance(row[key], str) for row in rows) else 'r' for key in columns)
    lines = ['% \\usepackage{booktabs}', rf'\begin{{tabular}}{{{sides}}}', r'\toprule']
    lines += [' & '.join(map(latex_text, columns)) + r' \\', r'\midrule']
    lines += [' & '.join(_latex_row(row, columns)) + r' \\' for row in rows]
    with result_file(path) as partial:
        text = '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', ''])
        partial.write_text(text, encoding='utf-8', errors='backslashreplace')


def write_tables(folder: str | Path, metrics: dict) -> None:
    """Write ``tables/NAME.csv`` and ``.tex`` of a run: overall, classes, groupings, published, subgroups, folds.

    Tables that the run has no figures for are not written, and removed if an earlier run left them. LaTeX tables leave out
    rows without a score and without predicted pixels, such as absent classes.

    Args:
        folder: of the run.
        metrics: what ``metrics.json`` holds.

    Raises:
        OSError: the folder cannot be written.
    """
    for name, make in _TABLES.items():
        rows, paths = list(make(metrics)), [Path(folder) / FOLDER / f'{name}.{suffix}' for suffix in ('csv', 'tex')]
        if not rows:
            for path in filter(is_ours, paths):
                path.unlink(missing_ok=True)
            continue
        write_csv(paths[0], rows)
        write_latex(paths[1], [row for row in rows if _scores_something(row)] or rows)


def _scores_something(row: Row) -> bool:
    return any(isinstance(value, float) for value in row.values()) or bool(row.get('predicted pixels'))


def _scored(figure: str, value: float | None, interval: list[float] | None) -> Row:
    low, high = interval or (None, None)
    return {figure: value, f'{figure} low': low, f'{figure} high': high}


def _overall(metrics: dict) -> Iterator[Row]:
    lines = (metrics.get('intervals') or {}).get('figures') or {}
    for key in _OVERALL:
        yield {'figure': key, **_scored('value', metrics.get(key), lines.get(key))}


def _class_row(row: dict, lines: dict) -> Row:
    """Scores of a class or a group; ``lines`` are its intervals, which one patient has none of."""
    known = lines if lines.get('patients') != 1 else {}
    found: Row = {}
    for key in _PER_CLASS:
        found |= _scored(key, row[key], known.get(key)) if key in ('IoU', 'Dice') else {key: row[key]}
    return {
        **found, 'pixels': row['pixels'], 'predicted pixels': row['predicted_pixels'], 'patients': lines.get('patients')
    }  # fmt: skip


def _classes(metrics: dict) -> Iterator[Row]:
    lines = (metrics.get('intervals') or {}).get('classes') or {}
    for name, row in metrics['classes'].items():
        yield {'class': name, **_class_row(row, lines.get(name) or {})}


def _groupings(metrics: dict) -> Iterator[Row]:
    for grouping, found in (metrics.get('groupings') or {}).items():
        lines = (found.get('intervals') or {}).get('groups') or {}
        for name, row in found['groups'].items():
            yield {'grouping': grouping, 'group': name, **_class_row(row, lines.get(name) or {})}


def _published(metrics: dict) -> Iterator[Row]:
    found = metrics.get('published') or {}
    lines = found.get('intervals') or {}
    for key, of in (('groups', 'groups_'), ('classes', '')):
        for name, value in (found.get(key) or {}).items():
            holders = ((lines.get('patients') or {}).get(key) or {}).get(name)
            interval = (lines.get(key) or {}).get(name) if holders != 1 else None
            yield {'of': key, 'name': name, **_scored('Dice', value, interval), 'patients': holders}
        for figure in ('mean_dice', 'micro_dice') if key in found else ():
            interval = lines.get(f'{of}{figure}')
            yield {'of': key, 'name': figure, **_scored('Dice', found[f'{of}{figure}'], interval), 'patients': None}


def _subgroups(metrics: dict) -> Iterator[Row]:
    for column, rows in (metrics.get('strata') or {}).items():
        for value, row in rows.items():
            lines, found = row.get('intervals') or {}, {}
            for key in ('mIoU', 'mDice', 'aAcc'):
                found |= _scored(key, row[key], lines.get(key))
            counts = {key: row[key] for key in ('rois', 'patients')}
            yield {'column': column, 'value': value, **found, 'classes': row['classes_present'], **counts}


def _folds(metrics: dict) -> Iterator[Row]:
    folds = metrics.get('folds')
    if not folds:
        return
    rows = [*folds['rows'], dict(fold='mean', **folds['mean']), dict(fold='SD', **folds['sd'])]
    if metrics.get('ensemble'):
        rows.append(dict(metrics['ensemble'], fold='ensemble, test part'))
    for row in rows:
        yield {key: row.get(key) for key in ('fold', 'mIoU', 'mDice', 'aAcc', 'classes_present', 'rois', 'patients')}


_TABLES: dict[str, Callable[[dict], Iterator[Row]]] = {
    'overall': _overall,
    'classes': _classes,
    'groupings': _groupings,
    'published': _published,
    'subgroups': _subgroups,
    'folds': _folds,
}
TABLE_FILES = tuple(f'{FOLDER}/{name}.{kind}' for name in _TABLES for kind in ('csv', 'tex'))
"""Paths in a run folder that :func:`write_tables` writes or removes."""
