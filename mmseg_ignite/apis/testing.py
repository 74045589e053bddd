"""Testing: predictions, scores, report."""

from pathlib import Path

from mmengine.config import Config
from mmengine.dist import barrier
from mmseg.evaluation import IoUMetric

from ..engine.checkpoints import safe_checkpoints
from ..engine.distributed import prepare_launch
from ..engine.hooks.prediction_writer_hook import PredictionWriterHook
from ..engine.runner import QuietRunner
from ..errors import IgniteError
from ..evaluation import TissueMetric
from ..models.ensembles import check_unseen, is_ensemble, load_members, read_ensemble, set_members
from ..preparation.store import roi_name
from .configuration import check_data, is_ours, selected
from .reporting import PREDICTIONS, publish


@safe_checkpoints()
def test(
    cfg: Config,
    checkpoint: 'str | Path',
    out: 'str | Path | None' = None,
    report: 'str | None' = 'en',
    amp: bool = False,
) -> dict:
    """Score a checkpoint, or an ensemble of several, on the test split.

    Writes the run, ``report.html`` and figures (see :func:`.reporting.publish` and docs/evaluation.md) into the work dir, and
    a label PNG of raw ids of each ROI into its folder ``predictions``.

    Args:
        checkpoint: a checkpoint, or an ensemble (see :mod:`mmseg_ignite.models.ensembles`).
        out: folder of the label PNGs instead, with an overlay beside each.
        report: language of the report, 'en' or 'ko'; None for no report.
        amp: automatic mixed precision; windows' logits are added in float32 all the same.

    Returns:
        What ``metrics.json`` holds; in the other processes of a distributed run nothing.

    Raises:
        IgniteError: data or checkpoint missing or wrong, an ensemble trained on a patient to be tested, or
            an evaluator without TissueMetric.
    """
    check_data(cfg, 'test_dataloader')
    dataset = cfg.test_dataloader.dataset
    if is_ensemble(checkpoint) and is_ours(dataset):
        read_ensemble(checkpoint)  # whether it is one, before what it says is asked
        check_unseen(checkpoint, (roi['patient'] for roi in selected(dataset)))
    cfg.load_from, cfg.resume = None, False
    cfg.model.backbone.init_cfg = None
    cfg.model, members = set_members(cfg.model, checkpoint)
    if amp:
        cfg.test_cfg.fp16 = True  # mmengine's name for autocast, whichever half precision the device has
    prepare_launch(cfg)
    runner = QuietRunner.from_cfg(cfg)
    metric = tissue_metric(runner.test_evaluator.metrics)
    load_members(runner.model.module if runner.distributed else runner.model, members)
    predictions = Path(out or Path(cfg.work_dir) / PREDICTIONS)
    written = is_ours(dataset) or out is not None
    if written:
        runner.register_hook(PredictionWriterHook(predictions, overlays=out is not None))
    runner.test()
    barrier()  # all have written their predictions
    if runner.rank != 0:
        return {}
    context = {
        'checkpoint': str(checkpoint),
        'config': cfg.filename,
        'data': dataset.get('data_root'),
        'split': dataset.get('split'),
        'protocol': dataset.get('protocol', 'patient-8-1-1'),
        'use_context': bool(dataset.get('use_context')),
    }
    if written:
        context.update(predictions=str(predictions), encoding='raw')
    if written and out is None:
        _remove_others(predictions, metric.evaluation.names)
    return publish(cfg.work_dir, metric.evaluation, context, report, **metric.options)


def tissue_metric(metrics: list) -> TissueMetric:
    """The metric that the run is made of.

    Raises:
        IgniteError: there is none, or another logs the same names.
    """
    metric = next((m for m in metrics if isinstance(m, TissueMetric)), None)
    if metric is None:
        raise IgniteError(
            'the config has no TissueMetric in its test_evaluator, from which metrics.json is made: '
            'add dict(type="TissueMetric").'
        )
    for other in metrics:
        if other is not metric and isinstance(other, (IoUMetric, TissueMetric)) and other.prefix == metric.prefix:
            raise IgniteError(
                f'TissueMetric and {type(other).__name__} of the test_evaluator would both log mIoU: give one of them a '
                f'prefix, e.g. dict(type="{type(other).__name__}", prefix="other").'
            )
    return metric


def _remove_others(folder: Path, names: 'list[str]') -> None:
    """Remove the predictions of an earlier test of other ROIs from the work dir's own folder."""
    kept = {roi_name(name) for name in names}
    for path in folder.glob('*.png'):
        if path.stem not in kept:
            path.unlink()
