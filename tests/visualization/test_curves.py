import numpy as np
import pytest
from matplotlib.figure import Figure

from mmseg_ignite.visualization.curves import draw_curves, panels, read_scalars


def test_curves_of_a_resumed_and_killed_run(tmp_path):
    for run, lines in (
        ('1', '{"loss": 2.0, "step": 1}\n{"loss": 1.5, "step": 2}\n{"loss'),
        ('2', '{"loss": 1.0, "step": 2}\n'),
    ):
        (tmp_path / run / 'vis_data').mkdir(parents=True)
        (tmp_path / run / 'vis_data' / 'scalars.json').write_text(lines)
    scalars = read_scalars(tmp_path)
    assert scalars['loss'] == {1: 2.0, 2: 1.0}
    draw_curves(scalars, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').stat().st_size > 5000


@pytest.fixture
def plotted(monkeypatch, tmp_path):
    """Return a function that plots scalars and returns the axes by title."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))

    def draw(scalars):
        draw_curves(scalars, tmp_path / 'curves.png')
        return {axis.get_title(): axis for axis in figures[-1].axes}

    return draw


def some(last, *names):
    return {name: {step: float(np.random.default_rng().random()) for step in range(1, last + 1)} for name in names}


def test_total_loss_cross_entropy_and_dice_have_separate_panels(plotted):
    scalars = some(
        5, 'loss', 'decode.loss_tissue', 'decode.cross_entropy', 'decode.dice', 'lr', 'mIoU', 'time', 'data_time'
    )
    axes = plotted(scalars)
    assert list(axes) == ['training loss, total', 'cross-entropy', 'Dice loss', 'learning rate', 'validation (%)']
    names = ('loss', 'decode.cross_entropy', 'decode.dice', 'lr', 'mIoU')
    for axis, name in zip(axes.values(), names):
        (line,) = axis.lines
        assert line.get_label() == name and list(line.get_ydata()) == list(scalars[name].values())


def test_losses_of_other_configs_are_grouped():
    found = panels(some(3, 'loss', 'decode.loss_ce', 'aux.loss_ce', 'decode.loss_dice', 'aux.loss_focal'))
    assert found == dict(
        loss=['loss', 'aux.loss_focal'], cross_entropy=['decode.loss_ce', 'aux.loss_ce'], dice=['decode.loss_dice']
    )


@pytest.mark.parametrize('last', [1, 2, 3, 7, 1000])
def test_iteration_ticks_are_integers(plotted, last):
    for axis in plotted(some(last, 'loss', 'lr')).values():
        ticks = axis.get_xticks()
        assert len(ticks) and (ticks == ticks.round()).all()


def test_without_scalars_the_picture_is_empty(plotted):
    assert [axis.lines[:] for axis in plotted({}).values()] == [[]]
