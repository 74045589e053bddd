"""Comparison of two runs on the same ROIs by a paired bootstrap."""

import numpy as np

from ..errors import IgniteError
from .bootstrap import SAMPLES, paired
from .run import Evaluation


def _list(names: set[str]) -> str:
    return ', '.join(sorted(names)[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def compare(a: Evaluation, b: Evaluation, samples: int = SAMPLES, seed: int = 0) -> dict:
    """Return ``rois`` and :func:`.bootstrap.paired` of two runs, B - A with intervals; ROIs are matched by name.

    Raises:
        IgniteError: The runs differ in ROIs, classes or ground truth.

    Example:
        >>> result = compare(Evaluation.load('runs/a'), Evaluation.load('runs/b'))
        >>> print(comparison_table(result))
    """
    only = {'A': set(a.names) - set(b.names), 'B': set(b.names) - set(a.names)}
    if any(only.values()):
        details = ' and '.join(f'only {run} has {_list(names)}' for run, names in only.items() if names)
        raise IgniteError(f'the runs are not on the same ROIs: {details}; score both on the same split.')
    if a.classes != b.classes:
        difference = _list(set(a.classes) ^ set(b.classes)) or 'their order'
        raise IgniteError(f'the runs have different classes ({difference}): compare runs with the same classes.')
    position = {name: number for number, name in enumerate(b.names)}
    order = [position[name] for name in a.names]
    counts_a, counts_b = a.counts, b.counts[order]
    if names := {a.names[i] for i in np.flatnonzero((counts_a.sum(-1) != counts_b.sum(-1)).any(-1))}:
        raise IgniteError(f'the ground truth of {_list(names)} differs between the runs: score both on the same data.')
    metadata = a.metadata if all('patient' in m for m in a.metadata) else [b.metadata[i] for i in order]
    return dict(rois=len(a.names), **paired(counts_a, counts_b, metadata, a.classes, samples, seed))


def comparison_table(result: dict, a: str = 'A', b: str = 'B') -> str:
    """Format the result of :func:`compare` as text, with the names of both runs; end with which has a better mIoU."""
    head = f'{"":<22}{"A":>8}{"B":>8}{"B - A":>9}{"95 % interval":>20}{"B better in":>13}'
    rule = '-' * len(head)
    lines = [f'A  {a}', f'B  {b}', '', head, rule]
    for name, row in {**result['figures'], 'IoU of each class': None, **result['classes']}.items():
        if row is None:
            lines.append(f'{name}:')
        elif row['difference'] is None:
            lines.append(f'{name:<22}{"absent":>25}')
        else:
            values = f'{row["a"]:>8.2f}{row["b"]:>8.2f}{row["difference"]:>+9.2f}'
            interval = '{:+.2f} .. {:+.2f}'.format(*row['interval'])
            lines.append(f'{name:<22}{values}{interval:>20}{row["b_better"]:>11.1f} %')
    units = f'{result["patients"]} {result["unit"]}s'
    lines += [rule, f'{result["rois"]} ROIs, {units} resampled {result["samples"]:,} times']
    lines += [f'note: {result["note"]}'] if 'note' in result else []
    row = result['figures']['mIoU']
    if row['difference'] is None:
        return '\n'.join([*lines, 'No annotated pixel: nothing to compare.'])
    low, high = row['interval']
    finding = 'B is better than A' if low > 0 else 'B is worse than A' if high < 0 else 'No clear difference'
    lines.append(f'{finding}: mIoU {row["difference"]:+.2f} points (95 % interval {low:+.2f} .. {high:+.2f}).')
    return '\n'.join(lines)
