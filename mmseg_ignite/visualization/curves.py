"""Training curves from the scalars that mmengine logs."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from ..files import atomic_file


def read_scalars(work_dir: 'str | Path') -> 'dict[str, dict[int, float]]':
    """All logged scalars of a work dir: {name: {iteration: value}}; later runs replace what they logged anew."""
    scalars: dict[str, dict[int, float]] = {}
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


def draw_curves(scalars: 'dict[str, dict[int, float]]', path: 'str | Path') -> None:
    """Draw losses, learning rate and validation scores over iterations, as far as they were logged."""
    losses = [n for n in scalars if 'loss' in n]
    scores = [n for n in ('mIoU', 'mDice', 'aAcc') if n in scalars]
    figure = Figure(figsize=(15, 4), layout='constrained')  # not pyplot's: a notebook's backend is its own affair
    axes = figure.subplots(1, 3)
    for axis, names, title in (
        (axes[0], losses, 'training loss'),
        (axes[1], ['lr'], 'learning rate'),
        (axes[2], scores, 'validation (%)'),
    ):
        for name in names:
            if name in scalars:
                points = sorted(scalars[name].items())
                axis.plot(*zip(*points), label=name, linewidth=1.5, marker='.' if len(points) < 40 else None)
        axis.set(title=title, xlabel='iteration')
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(frameon=False)
    axes[2].set_ylim(0, 100)
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=110)
