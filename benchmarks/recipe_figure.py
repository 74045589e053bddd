"""Plot the scores of ``recipe.py crossval``."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

_ROWS = (('clean', 'test images', '#1b6ca8'), ('shifted', 'the same with a stain shift', '#c8553d'))


def plot(rows: dict, by_seed: dict[str, dict[str, np.ndarray]], title: str, path: str | Path) -> None:
    """Plot the clean and shifted mIoU of each recipe with confidence intervals and one dot per seed, as PNG.

    Args:
        rows: See :func:`.recipe_crossval.intervals`.
        by_seed: {recipe: {'clean' or 'shifted': mIoU of each seed in percent}}.
        title: Title of the figure.
        path: Path of the PNG.
    """
    names = sorted(rows, key=lambda name: rows[name]['clean'][0] + rows[name]['shifted'][0])
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.75 * len(names)), layout='constrained')
    for y, name in enumerate(reversed(names)):
        for (key, label, colour), offset in zip(_ROWS, (0.15, -0.15)):
            mean, low, high = rows[name][key][:3]
            axes.plot([low, high], [y + offset] * 2, color=colour, linewidth=2, alpha=0.5, solid_capstyle='round')
            seeds = by_seed[name][key]
            axes.plot(seeds, [y + offset] * len(seeds), '.', color=colour, markersize=5, alpha=0.7)
            axes.plot(mean, y + offset, 'o', color=colour, markersize=8, label=label if y == 0 else None)
            axes.text(high + 0.7, y + offset, f'{mean:.1f}', color=colour, va='center', fontsize=9)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(left=0)
    axes.set_xlabel('mIoU, %  (line: 95 % interval over patients and seeds; small dots: seeds)')
    axes.set_title(title, fontsize=11, loc='left')
    axes.grid(axis='x', alpha=0.3)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(axis='y', length=0)
    figure.legend(loc='outside lower center', ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
