"""Testing: scores, metrics.json, pictures."""

from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ..engine.checkpoints import load_weights
from ..engine.distributed import prepare_launch
from ..engine.hooks.prediction_writer_hook import PredictionWriterHook
from ..errors import IgniteError
from ..evaluation import TissueMetric, write_run
from .configuration import check_data


def test(cfg: Config, checkpoint: 'str | Path', out: 'str | Path | None' = None) -> dict:
    """Score a checkpoint on the test split.

    Writes the run (see :func:`mmseg_ignite.evaluation.write_run` and docs/evaluation.md) into the work dir; with ``out`` a
    label PNG of raw ids and an overlay of each ROI into that folder.

    Returns:
        What ``metrics.json`` holds; in the other processes of a distributed run nothing.

    Raises:
        IgniteError: data or checkpoint missing or wrong, or an evaluator other than TissueMetric first in the config.
    """
    check_data(cfg, 'test_dataloader')
    cfg.load_from, cfg.resume = None, False
    cfg.model.backbone.init_cfg = None
    prepare_launch(cfg)
    runner = Runner.from_cfg(cfg)
    load_weights(runner.model.module if runner.distributed else runner.model, checkpoint)
    if out is not None:
        runner.register_hook(PredictionWriterHook(out))
    runner.test()
    metric = next((m for m in runner.test_evaluator.metrics if isinstance(m, TissueMetric)), None)
    if metric is None:
        raise IgniteError(
            'the config has no TissueMetric in its test_evaluator, from which metrics.json is made: '
            'add dict(type="TissueMetric").'
        )
    if runner.rank != 0:
        return {}
    dataset = cfg.test_dataloader.dataset
    context = {
        'checkpoint': str(checkpoint),
        'config': cfg.filename,
        'split': dataset.get('split'),
        'protocol': dataset.get('protocol', 'patient-8-1-1'),
    }
    return write_run(cfg.work_dir, metric.evaluation, context, **metric.options)
