"""Two runs on the same ROIs: is the second better, and how sure is it."""

import numpy as np

from ..errors import IgniteError
from .bootstrap import SAMPLES, paired
from .run import Evaluation


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ', '.join(shown) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def compare(a: Evaluation, b: Evaluation, samples: int = SAMPLES, seed: int = 0) -> dict:
    """Paired bootstrap of B - A over patients; ROIs are matched by name. See :func:`.bootstrap.paired`.

    Raises:
        IgniteError: other ROIs, other classes, or other ground truth.
    """
    only_a, only_b = set(a.names) - set(b.names), set(b.names) - set(a.names)
    if only_a or only_b:
        said = ' and '.join(f'only {run} has {_some(names)}' for run, names in (('A', only_a), ('B', only_b)) if names)
        raise IgniteError(f'the runs are not on the same ROIs: {said}; score both on the same split.')
    if a.classes != b.classes:
        raise IgniteError(f'the runs have other classes ({_some(set(a.classes) ^ set(b.classes)) or "another order"}): '
                          'only runs of the same classes compare.')  # fmt: skip
    place = {name: i for i, name in enumerate(b.names)}
    counts_a, counts_b = a.counts, b.counts[[place[name] for name in a.names]]
    differ = (counts_a.sum(-1) != counts_b.sum(-1)).any(-1)
    if differ.any():
        names = {a.names[i] for i in np.flatnonzero(differ)}
        raise IgniteError(f'the ground truth of {_some(names)} differs between the runs: score both on the same data.')
    metadata = a.metadata if all('patient' in m for m in a.metadata) else [b.metadata[place[n]] for n in a.names]
    return dict(rois=len(a.names), **paired(counts_a, counts_b, metadata, a.classes, samples, seed))


def comparison_table(result: dict, a: str = 'A', b: str = 'B') -> str:
    """The result of :func:`compare` as text."""
    head = f'{"":<22}{"A":>8}{"B":>8}{"B - A":>9}{"95 % interval":>20}{"B better in":>13}'
    lines = [f'A  {a}', f'B  {b}', '', head, '-' * len(head)]
    rows = {**result['figures'], 'IoU of each class': None, **result['classes']}
    for name, row in rows.items():
        if row is None:
            lines.append(f'{name}:')
        elif row['difference'] is None:
            lines.append(f'{name:<22}{"absent":>25}')
        else:
            low, high = row['interval']
            interval = f'{low:+.2f} .. {high:+.2f}'
            figures = f'{row["a"]:>8.2f}{row["b"]:>8.2f}{row["difference"]:>+9.2f}'
            lines.append(f'{name:<22}{figures}{interval:>20}{row["b_better"]:>11.1f} %')
    drawn = f'{result["patients"]} {result["unit"]}s drawn {result["samples"]:,} times'
    lines += ['-' * len(head), f'{result["rois"]} ROIs, {drawn}']
    if 'note' in result:
        lines.append(f'note: {result["note"]}')
    return '\n'.join([*lines, verdict(result)])


def verdict(result: dict) -> str:
    """One sentence: whether B is better in mIoU, and by how much."""
    row = result['figures']['mIoU']
    if row['difference'] is None:
        return 'No annotated pixel: nothing to compare.'
    low, high = row['interval']
    said = 'B is better than A' if low > 0 else 'B is worse than A' if high < 0 else 'No clear difference'
    return f'{said}: mIoU {row["difference"]:+.2f} points (95 % interval {low:+.2f} .. {high:+.2f}).'
