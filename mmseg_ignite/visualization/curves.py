"""Training curves from the scalars that mmengine logs."""

import json
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


def read_scalars(work_dir: str | Path) -> Scalars:
    """Read all scalars logged in a work dir; where runs overlap, the later run wins.

    Returns:
        {name: {iteration: value}}.
    """
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
    """Group logged scalars into panels.

    Cross-entropy and Dice loss get their own panels because their scales differ from that of their sum.

    Returns:
        Names of scalars by panel: 'loss', 'cross_entropy', 'dice', 'lr', 'validation'; panels without scalars are omitted.
    """
    last = {name: name.rsplit('.', 1)[-1] for name in scalars}
    cross_entropy = [name for name in scalars if last[name] in ('cross_entropy', 'loss_ce')]
    dice = [name for name in scalars if last[name] in ('dice', 'loss_dice')]
    parts = {*cross_entropy, *dice, *(name for name in scalars if last[name] == 'loss_tissue')}
    found = dict(
        loss=[name for name in scalars if 'loss' in name and name not in parts],
        cross_entropy=cross_entropy,
        dice=dice,
        lr=[name for name in scalars if name == 'lr'],
        validation=[name for name in ('mIoU', 'mDice', 'aAcc') if name in scalars],
    )
    return {key: names for key, names in found.items() if names}


def draw_curves(scalars: Scalars, path: str | Path) -> None:
    """Plot losses, learning rate and validation scores over iterations into a picture (see :func:`panels`)."""
    found = panels(scalars)
    columns = min(_COLUMNS, max(1, len(found)))
    rows = -(-len(found) // columns) or 1
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout='constrained')  # pyplot would change a notebook's backend
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[max(1, len(found)) :]:
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
