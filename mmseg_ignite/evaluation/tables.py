"""The tables of a run as files: CSV for programs and spreadsheets, LaTeX for papers."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ..files import is_ours, result_file
from ..spreadsheets import Row, write_csv
from ..spreadsheets import read_csv as read_csv
from .confusion import FIGURES, OVERALL

FOLDER = 'tables'
_NAMES = dict(zip('\\~^<>|"µ', 'backslash asciitilde asciicircum less greater bar quotedbl mu'.split()))
_LATEX = str.maketrans({c: rf'\{c}' for c in '&%$#_{}'} | {c: rf'\text{name}{{}}' for c, name in _NAMES.items()})
_OVERALL = sorted(OVERALL, key=lambda key: key.endswith('all_classes'))


def latex_text(text: str) -> str:
    """Escape the special characters of LaTeX and join lines."""
    return ' '.join(text.split()).translate(_LATEX)


def _latex_cell(value: object, digits: int = 1) -> str:
    if isinstance(value, float):
        return f'${value:.{digits}f}$'
    return '--' if value is None else f'{value:,}' if isinstance(value, int) else latex_text(str(value))


def _latex_row(row: Row, columns: list[str]) -> Iterator[str]:
    digits = 3 if row.get('figure') == 'kappa' else 1
    for key in columns:
        cell = _latex_cell(row[key], digits)
        if row.get(f'{key} low') is not None:
            cell += ' ({}--{})'.format(*(_latex_cell(row[f'{key} {end}'], digits) for end in ('low', 'high')))
        yield cell


def write_latex(path: str | Path, rows: list[Row]) -> None:
    """Write rows with equal keys as a ``tabular``, atomically; the columns ``X low`` and ``X high`` are merged into ``X``."""
    columns = [key for key in rows[0] if not key.endswith((' low', ' high'))]
    alignment = ''.join('l' if any(isinstance(row[key], str) for row in rows) else 'r' for key in columns)
    lines = ['% \\usepackage{booktabs}', rf'\begin{{tabular}}{{{alignment}}}', r'\toprule']
    lines += [' & '.join(map(latex_text, columns)) + r' \\', r'\midrule']
    lines += [' & '.join(_latex_row(row, columns)) + r' \\' for row in rows]
    lines += [r'\bottomrule', r'\end{tabular}', '']
    with result_file(path) as partial:
        partial.write_text('\n'.join(lines), encoding='utf-8', errors='backslashreplace')


def write_tables(folder: str | Path, metrics: dict) -> None:
    """Write ``tables/NAME.csv`` and ``.tex`` of a run: overall, classes, groupings, published, subgroups, folds.

    Tables without rows are not written, and removed if an earlier run left them. LaTeX tables omit rows that have neither a
    score nor predicted pixels, such as absent classes. ``metrics`` are the contents of ``metrics.json``.
    """
    for name, make in _TABLES.items():
        rows, paths = list(make(metrics)), [Path(folder) / FOLDER / f'{name}.{suffix}' for suffix in ('csv', 'tex')]
        if rows:
            write_csv(paths[0], rows)
            scored = [
                row for row in rows if any(isinstance(v, float) for v in row.values()) or row.get('predicted pixels')
            ]
            write_latex(paths[1], scored or rows)
        else:
            for path in filter(is_ours, paths):
                path.unlink(missing_ok=True)


def _get(metrics: dict, *keys: str) -> dict:
    """Look up nested dicts; missing ones and None are empty."""
    for key in keys:
        metrics = metrics.get(key) or {}
    return metrics


def _scored(key: str, value: float | None, interval: list[float] | None) -> Row:
    low, high = interval or (None, None)
    return {key: value, f'{key} low': low, f'{key} high': high}


def _overall(metrics: dict) -> Iterator[Row]:
    intervals = _get(metrics, 'intervals', 'figures')
    for key in _OVERALL:
        yield {'figure': key, **_scored('value', metrics.get(key), intervals.get(key))}


def _class_row(row: dict, intervals: dict) -> Row:
    """Return the scores of a class or group, without intervals if only one patient has it."""
    patients = intervals.get('patients')
    known = intervals if patients != 1 else {}
    scored = {**_scored('IoU', row['IoU'], known.get('IoU')), **_scored('Dice', row['Dice'], known.get('Dice'))}
    counts = {'pixels': row['pixels'], 'predicted pixels': row['predicted_pixels'], 'patients': patients}
    return {**scored, 'Precision': row['Precision'], 'Recall': row['Recall'], **counts}


def _classes(metrics: dict) -> Iterator[Row]:
    for name, row in metrics['classes'].items():
        yield {'class': name, **_class_row(row, _get(metrics, 'intervals', 'classes', name))}


def _groupings(metrics: dict) -> Iterator[Row]:
    for grouping, found in _get(metrics, 'groupings').items():
        for name, row in found['groups'].items():
            yield {'grouping': grouping, 'group': name, **_class_row(row, _get(found, 'intervals', 'groups', name))}


def _published(metrics: dict) -> Iterator[Row]:
    found = _get(metrics, 'published')
    intervals = _get(found, 'intervals')
    for key, prefix in (('groups', 'groups_'), ('classes', '')):
        for name, value in _get(found, key).items():
            patients = _get(intervals, 'patients', key).get(name)
            interval = _get(intervals, key).get(name) if patients != 1 else None
            yield {'of': key, 'name': name, **_scored('Dice', value, interval), 'patients': patients}
        for mean in (f'{prefix}mean_dice', f'{prefix}micro_dice') if key in found else ():
            name = mean.removeprefix(prefix)
            yield {'of': key, 'name': name, **_scored('Dice', found[mean], intervals.get(mean)), 'patients': None}


def _subgroups(metrics: dict) -> Iterator[Row]:
    for column, rows in _get(metrics, 'strata').items():
        for value, row in rows.items():
            found: Row = {'column': column, 'value': value}
            for key in FIGURES:
                found |= _scored(key, row[key], _get(row, 'intervals').get(key))
            yield {**found, 'classes': row['classes_present'], 'rois': row['rois'], 'patients': row['patients']}


def _folds(metrics: dict) -> Iterator[Row]:
    if not (folds := metrics.get('folds')):
        return
    rows = [*folds['rows'], dict(fold='mean', **folds['mean']), dict(fold='SD', **folds['sd'])]
    rows += [dict(metrics['ensemble'], fold='ensemble, test part')] if metrics.get('ensemble') else []
    for row in rows:
        yield {key: row.get(key) for key in ('fold', *FIGURES, 'classes_present', 'rois', 'patients')}


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
