"""Testing: predictions, scores, report."""

from pathlib import Path

from mmengine.config import Config
from mmengine.dist import barrier

from ..datasets.ignite import LOADERS, PROTOCOL
from ..datasets.prepared import INDEX, roi_name
from ..datasets.transforms import StainShift
from ..datasets.transforms.loading import transform_name
from ..engine.checkpoints import safe_checkpoints
from ..engine.distributed import prepare_launch
from ..engine.ensembles import is_ensemble, load_members, set_members
from ..engine.hooks.prediction_writer_hook import PredictionWriterHook
from ..engine.optim_wrappers import use_half_precision
from ..engine.work_dirs import find_checkpoint
from ..errors import IgniteError
from ..evaluation import TissueMetric
from ..files import check_outputs, is_ours, visible_files
from ..provenance import file_sha256, provenance, text_sha256
from ..visualization.writers import prediction_files
from .checks import check_classes, check_data, check_parts, check_work_dir, selected
from .checks import is_ours as is_our_data
from .configuration import build_runner, resolved
from .leakage import seen_by
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
) -> dict:
    """Score a checkpoint, or an ensemble of several, on the test split.

    Writes the run, ``report.html`` and figures (see :func:`.reporting.publish` and docs/evaluation.md) into the work dir, and
    a label PNG of raw ids of each ROI into its folder ``predictions``.

    Args:
        cfg: a config, which stays as it is.
        checkpoint: a checkpoint, the work dir of a training (its latest checkpoint), or an ensemble (see
            :mod:`mmseg_ignite.engine.ensembles`).
        out: folder of the label PNGs instead, with an overlay beside each.
        report: language of the report, 'en' or 'ko'; None for no report.
        amp: automatic mixed precision, in the half precision of :func:`half_dtype
            <mmseg_ignite.engine.optim_wrappers.half_dtype>`; windows' logits are added in float32 all the same.
        allow_seen_patients: score patients that the checkpoint was trained on too; the report warns of it.
        count_validation: a patient by whom a checkpoint was chosen counts as seen. False for checkpoints that were not
            chosen, as the last one of a training.
        shift: test the images as another laboratory would have stained and scanned them: 'lab', 'lab-tinted' or 'scanner',
            see :class:`StainShift <mmseg_ignite.datasets.transforms.StainShift>`. The report says so.

    Returns:
        What ``metrics.json`` holds; in the other processes of a distributed run nothing.

    Raises:
        IgniteError: data or checkpoint missing or wrong, a checkpoint that has seen a patient to be tested, outputs that may
            not be written (see :func:`mmseg_ignite.files.check_outputs`), or an evaluator without TissueMetric.
    """
    checkpoint = Path(checkpoint) if is_ensemble(checkpoint) else find_checkpoint(checkpoint)
    cfg = resolved(cfg)
    check_parts(cfg, 'test')
    cfg.load_from, cfg.resume = None, False
    if shift is not None:
        _add_shift(cfg, shift)
    cfg.model.backbone.init_cfg = None
    cfg.model, members = set_members(cfg.model, checkpoint)
    check_classes(cfg, 'test_dataloader')
    check_data(cfg, 'test_dataloader')
    dataset = cfg.test_dataloader.dataset
    entries = selected(dataset) if is_our_data(dataset) else []
    predictions = Path(out or Path(cfg.work_dir) / PREDICTIONS)
    written = [path for e in entries for path in prediction_files(predictions, e['name'], overlay=out is not None)]
    check_outputs([*run_files(cfg.work_dir, report), *written], [checkpoint, *([cfg.filename] if cfg.filename else [])])
    check_work_dir(cfg)
    prepare_launch(cfg)
    runner = build_runner(cfg)
    metric = tissue_metric(runner.test_evaluator.metrics)
    model = runner.model.module if runner.distributed else runner.model
    metas, seen = load_members(model, members), []
    if is_our_data(dataset):
        seen = seen_by(checkpoint, dataset.data_root, entries, allow_seen_patients, count_validation, metas)
    if amp:
        use_half_precision(model)
    writes = is_our_data(dataset) or out is not None
    if writes:
        runner.register_hook(PredictionWriterHook(predictions, out is not None, shift))
    runner.test()
    barrier()  # all have written their predictions
    if runner.rank != 0:
        return {}
    context = {
        'checkpoint': str(checkpoint),
        'config': cfg.filename,
        'data': dataset.get('data_root'),
        'split': dataset.get('split'),
        'protocol': dataset.get('protocol', PROTOCOL),
        'use_context': bool(dataset.get('use_context')),
        'provenance': _provenance(cfg, checkpoint, members),
    }
    if shift is not None:
        context['shift'] = shift
    if seen:
        context['seen_patients'] = seen
    if writes:
        context.update(predictions=str(predictions), encoding='raw')
    if writes and out is None:
        _remove_others(predictions, metric.evaluation.names)
    return publish(cfg.work_dir, metric.evaluation, context, report, **metric.options)


def _add_shift(cfg: Config, kind: str) -> None:
    """Let the test pipeline shift the stain of the images, once they are read.

    Raises:
        IgniteError: an unknown kind, or a pipeline without a loader.
    """
    StainShift(kind)
    pipeline = cfg.test_dataloader.dataset.pipeline
    loaders = [place for place, one in enumerate(pipeline) if transform_name(one) in LOADERS]
    if not loaders:
        raise IgniteError(
            f'{cfg.filename or "the config"} has no {" or ".join(LOADERS)} in the pipeline of its test data, after which the '
            'stain could be shifted: test it without a shift.'
        )
    pipeline.insert(loaders[-1] + 1, dict(type='StainShift', kind=kind))


def _provenance(cfg: Config, checkpoint: Path, members: list[Path]) -> dict:
    index = Path(cfg.test_dataloader.dataset.get('data_root') or '') / INDEX
    return provenance(
        config_sha256=text_sha256(cfg.pretty_text),
        checkpoint_sha256=file_sha256(checkpoint),
        members_sha256=[file_sha256(member) for member in members] if is_ensemble(checkpoint) else None,
        data_sha256=file_sha256(index) if index.is_file() else None,
        seed=(cfg.get('randomness') or {}).get('seed'),
    )


def tissue_metric(metrics: list) -> TissueMetric:
    """The metric that the run is made of.

    Raises:
        IgniteError: there is none.
    """
    metric = next((m for m in metrics if isinstance(m, TissueMetric)), None)
    if metric is None:
        raise IgniteError(
            'the config has no TissueMetric in its test_evaluator, from which metrics.json is made: '
            'add dict(type="TissueMetric").'
        )
    return metric


def _remove_others(folder: Path, names: list[str]) -> None:
    """Remove the predictions that an earlier test of other ROIs left in the work dir's own folder; other files stay."""
    kept = {roi_name(name) for name in names}
    for path in visible_files(folder, ('.png',)):
        if path.stem not in kept and is_ours(path):
            path.unlink()
