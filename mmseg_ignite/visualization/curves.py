"""Training curves from the scalars that mmengine logs."""

import json
import os
from collections import defaultdict
from pathlib import Path

from ..files import result_file
from ..untrusted import MAX_NAME, is_number, is_text, read_text
from .figures import new_figure

Scalars = dict[str, dict[int, float]]
"""{name: {iteration: value}}."""

_COLUMNS = 3
_TITLES = dict(
    loss='training loss, total',
    cross_entropy='cross-entropy',
    dice='Dice loss',
    lr='learning rate',
    validation='validation (%)',
)
_PARTS = dict(cross_entropy='cross_entropy', loss_ce='cross_entropy', dice='dice', loss_dice='dice', loss_tissue=None)
"""Panel by the last part of a scalar's name; loss_tissue, a sum of parts, has none."""


def read_scalars(work_dir: str | Path) -> Scalars:
    """Read all scalars logged in a work dir; where runs overlap, the later run wins.

    Lines that are not complete are skipped, such as the last one of a run that was killed, and so are values that are not
    numbers within 1e30.

    Raises:
        IgniteError: a log cannot be read, is not UTF-8 or too large.
    """
    scalars: Scalars = {}
    if not os.path.isdir(work_dir):  # unlike Path.is_dir, also False for a name that is too long
        return scalars
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in read_text(path, 'move it away').splitlines():
            step, entry = _line(line)
            for name, value in entry.items():
                if is_number(value, -1e30, 1e30) and is_text(name, MAX_NAME):
                    scalars.setdefault(name, {})[step] = float(value)
    return scalars


def _line(line: str) -> tuple[int, dict]:
    """Return the iteration and the content of one line of a log; no content if it is not complete."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return 0, {}
    step = entry.get('step', 0) if isinstance(entry, dict) else None
    return (int(step), entry) if is_number(step, 0, 2**53) else (0, {})


def panels(scalars: Scalars) -> dict[str, list[str]]:
    """Return the names of scalars by panel: 'loss', 'cross_entropy', 'dice', 'lr', 'validation'; empty panels are omitted.

    Cross-entropy and Dice loss have their own panels because their scales differ from that of their sum.
    """
    found = defaultdict(list)
    for name in scalars:
        found[_PARTS.get(name.rsplit('.', 1)[-1], 'loss' if 'loss' in name else name)].append(name)
    found['validation'] = [name for name in ('mIoU', 'mDice', 'aAcc') if name in scalars]
    return {key: found[key] for key in _TITLES if found[key]}


def draw_curves(scalars: Scalars, path: str | Path) -> None:
    """Plot losses, learning rate and validation scores over iterations into a picture (see :func:`panels`)."""
    from matplotlib.ticker import MaxNLocator

    found = panels(scalars)
    count = max(1, len(found))  # without scalars, an empty panel
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = new_figure(5 * columns, 3.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.remove()
    for axis, (key, names) in zip(axes, found.items()):
        for name in names:
            points = sorted(scalars[name].items())
            axis.plot(*zip(*points), label=name, linewidth=1.5, marker='.' if len(points) < 40 else None)
        axis.set(title=_TITLES[key], xlabel='iteration')
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        if key == 'validation':
            axis.set_ylim(0, 100)
        if len(names) > 1:
            axis.legend(frameon=False)
    with result_file(path, replace=True) as partial:
        figure.savefig(partial, dpi=110)
