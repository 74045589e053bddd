"""Training curves from the scalars that mmengine logs."""

import json
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import result_file

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
    """Read all scalars logged in a work dir; where runs overlap, the later run wins."""
    scalars: Scalars = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text(encoding='utf-8').splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            step = int(entry.get('step', 0))
            for name, value in entry.items():
                if isinstance(value, (int, float)):
                    scalars.setdefault(name, {})[step] = float(value)
    return scalars


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
    found = panels(scalars)
    count = max(1, len(found))  # without scalars, an empty panel
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout='constrained')  # pyplot would change a notebook's backend
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
