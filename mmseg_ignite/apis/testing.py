"""Testing: predictions, scores, report."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import barrier
from mmengine.model import is_model_wrapper
from mmengine.registry import init_default_scope

from ..datasets.ignite import LOADERS, PROTOCOL
from ..datasets.prepared import INDEX, roi_name
from ..datasets.transforms import StainShift
from ..datasets.transforms.loading import transform_name
from ..engine.checkpoints import safe_checkpoints
from ..engine.compiled_inference import Compilation
from ..engine.ensembles import Ensemble
from ..engine.hooks import PredictionWriterHook
from ..engine.optim_wrappers import predict_in, prediction_dtype
from ..errors import IgniteError
from ..evaluation import TissueMetric
from ..files import check_outputs, check_writable, is_ours, visible_files
from ..provenance import file_sha256, provenance, text_sha256
from ..visualization.overlay import prediction_files
from .checks import check_run, selected
from .checks import is_ours as is_our_data
from .configuration import build_runner, building, resolved, running
from .publishing import PREDICTIONS, publish, run_files


@safe_checkpoints()
def test(
    cfg: Config,
    checkpoint: str | Path,
    out: str | Path | None = None,
    report: str | None = 'en',
    amp: bool = False,
    allow_seen_patients: bool = False,
    count_validation: bool = True,
    shift: str | None = None,
    compile: bool = False,
) -> dict:
    """Score a checkpoint, or an ensemble, on the test split.

    Write scores, ``report.html`` and figures (see :func:`.publishing.publish` and docs/evaluation.md) to the work dir, and a
    label PNG of raw ids for each ROI to its folder ``predictions``.

    Args:
        cfg: config; it is not changed.
        checkpoint: a checkpoint, the work dir of a training (its latest checkpoint), or an ensemble, see
            :mod:`mmseg_ignite.engine.ensembles`.
        out: another folder for the label PNGs, with an overlay beside each.
        report: language of the report, 'en' or 'ko'; None for no report.
        amp: predict in the :func:`precision <mmseg_ignite.engine.optim_wrappers.precision>` of a training with ``--amp``, as
            its validations do; logits of windows are still added in float32.
        allow_seen_patients: also score patients that the checkpoint was trained on; the report warns of it.
        count_validation: count patients whose validation selected the checkpoint as seen. False for checkpoints that were
            not selected, such as the last one of a training.
        shift: test images as another laboratory would have stained and scanned them: 'lab', 'lab-tinted' or 'scanner', see
            :class:`StainShift <mmseg_ignite.datasets.transforms.StainShift>`.
        compile: predict full batches of windows by compiled networks, see
            :class:`Compilation <mmseg_ignite.engine.compiled_inference.Compilation>`.

    Returns:
        The content of ``metrics.json``; in the other processes of a distributed run, nothing.

    Raises:
        IgniteError: data or checkpoint are missing or wrong, the checkpoint has seen a patient to be tested, outputs may not
            be written (see :func:`mmseg_ignite.files.check_outputs`), the evaluator has no TissueMetric, or a loader worker
            or another process of a distributed run fails or hangs; or the networks cannot be compiled.

    Example:
        >>> scores = test(load_config(config), 'work_dirs/b0/iter_20000.pth')
        >>> scores['mIoU']  # percent
    """
    ensemble = Ensemble.read(checkpoint)
    cfg = _configured(cfg, ensemble, shift)
    dataset = cfg.test_dataloader.dataset
    entries = selected(dataset) if is_our_data(dataset) else []
    predictions = Path(out or Path(cfg.work_dir) / PREDICTIONS)
    written = [path for e in entries for path in prediction_files(predictions, e['name'], overlay=out is not None)]
    check_outputs([*run_files(cfg.work_dir, report), *written], [*filter(None, (ensemble.path, cfg.filename))])
    check_writable(cfg.work_dir)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    with building(cfg):
        ensemble.check_members(cfg.model)
    runner = build_runner(cfg)
    metric = tissue_metric(runner.test_evaluator.metrics)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    metas = ensemble.load_into(model)
    context = _context(cfg, ensemble, shift)
    if is_our_data(dataset):
        root = dataset.data_root
        seen = ensemble.seen_patients(metas, root, entries, allow_seen_patients, count_validation)
        context |= dict(seen_patients=seen) if seen else {}
    dtype = prediction_dtype(cfg, next(model.parameters()).device, amp)
    if compile:
        with torch.no_grad():  # as in a test
            Compilation(model.eval(), dtype).compile()
        context['provenance']['compiled'] = 'encoder and decoder'
    predict_in(model, dtype)
    if is_our_data(dataset) or out is not None:
        runner.register_hook(PredictionWriterHook(predictions, out is not None, shift))
        context |= dict(predictions=str(predictions), encoding='raw')
    with running(cfg):
        runner.test()
        barrier()  # all processes have written their predictions
    if runner.rank != 0:
        return {}
    if 'predictions' in context and out is None:
        _remove_others(predictions, metric.evaluation.names)
    return publish(cfg.work_dir, metric.evaluation, context, report, recount=False, **metric.options)


def _configured(cfg: Config, ensemble: Ensemble, shift: str | None) -> Config:
    """Return a checked copy of a config that tests an ensemble."""
    cfg = resolved(cfg)
    cfg.load_from, cfg.resume = None, False
    check_run(cfg, 'test')
    if shift is not None:
        _add_shift(cfg, shift)
    cfg.model.backbone.init_cfg = None
    cfg.model = ensemble.model_config(cfg.model)
    return cfg


def _add_shift(cfg: Config, kind: str) -> None:
    """Insert a StainShift after the loading transforms of the test pipeline.

    Raises:
        IgniteError: an unknown kind, or a pipeline without a loading transform.
    """
    StainShift(kind)
    pipeline = cfg.test_dataloader.dataset.pipeline
    loaders = [number for number, transform in enumerate(pipeline) if transform_name(transform) in LOADERS]
    if not loaders:
        raise IgniteError(
            f'the test pipeline of {cfg.filename or "the config"} has no {" or ".join(LOADERS)}, after which the stain could '
            'be shifted: test without --shift.'
        )
    pipeline.insert(loaders[-1] + 1, dict(type='StainShift', kind=kind))


def _context(cfg: Config, ensemble: Ensemble, shift: str | None) -> dict:
    """Return what metrics.json states beside the scores."""
    dataset = cfg.test_dataloader.dataset
    index = Path(dataset.get('data_root') or '') / INDEX
    context = {
        'checkpoint': str(ensemble.path),
        'config': cfg.filename,
        'data': dataset.get('data_root'),
        'split': dataset.get('split'),
        'protocol': dataset.get('protocol', PROTOCOL),
        'use_context': bool(dataset.get('use_context')),
        'provenance': provenance(
            config_sha256=text_sha256(cfg.pretty_text),
            data_sha256=file_sha256(index) if index.is_file() else None,
            seed=(cfg.get('randomness') or {}).get('seed'),
            **ensemble.checksums(),
        ),
    }
    return context if shift is None else dict(context, shift=shift)


def tissue_metric(metrics: list) -> TissueMetric:
    """Return the metric whose counts make up the run.

    Raises:
        IgniteError: there is none.
    """
    metric = next((m for m in metrics if isinstance(m, TissueMetric)), None)
    if metric is None:
        raise IgniteError(
            'the test_evaluator of the config has no TissueMetric, whose counts make up metrics.json: add '
            'dict(type="TissueMetric").'
        )
    return metric


def _remove_others(folder: Path, names: list[str]) -> None:
    """Remove predictions of ours for other ROIs from the work dir, left by an earlier test; keep other files."""
    kept = {roi_name(name) for name in names}
    for path in visible_files(folder, ('.png',)):
        if path.stem not in kept and is_ours(path):
            path.unlink()
