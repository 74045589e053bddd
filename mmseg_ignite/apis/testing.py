"""Testing: scores, metrics.json, pictures."""

from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner

from ..engine.checkpoints import load_weights
from ..engine.distributed import prepare_launch
from ..engine.hooks.prediction_writer_hook import PredictionWriterHook
from ..errors import IgniteError
from ..evaluation import TissueMetric
from ..evaluation.confusion import table
from ..files import atomic_file, write_json
from ..labels import CLASSES
from .configuration import check_data


def test(cfg: Config, checkpoint: 'str | Path', out: 'str | Path | None' = None) -> dict:
    """Score a checkpoint on the test split.

    Writes into the work dir ``metrics.json`` (percent, unrounded), ``metrics.txt`` (the table) and ``confusion.npz``
    (``names`` and ``matrices`` (R, C, C) int64 of each ROI); with ``out`` a label PNG of raw ids and an overlay of each
    ROI into that folder.

    Returns:
        What ``metrics.json`` holds: :func:`mmseg_ignite.evaluation.scores` with config, checkpoint, protocol, split.

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
    dataset = cfg.test_dataloader.dataset
    result = {
        **metric.summary,
        'checkpoint': str(checkpoint),
        'config': cfg.filename,
        'rois': len(metric.rois),
        'split': dataset.get('split'),
        'protocol': dataset.get('protocol', 'patient-8-1-1'),
    }
    if runner.rank == 0:
        work_dir = Path(cfg.work_dir)
        with atomic_file(work_dir / 'confusion.npz') as partial:
            np.savez_compressed(
                partial, names=[n for n, _ in metric.rois], matrices=[m for _, m in metric.rois], classes=CLASSES
            )
        with atomic_file(work_dir / 'metrics.txt') as partial:
            partial.write_text(table(result) + '\n', encoding='utf-8')
        write_json(work_dir / 'metrics.json', result)
    return result
