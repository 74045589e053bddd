"""Training with mmengine's runner."""

import contextlib
import os
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.registry import DATASETS

from ..datasets.transforms.loading import transform_name as type_name
from ..engine.checkpoints import open_checkpoint, safe_checkpoints
from ..engine.distributed import is_main_process
from ..engine.encoder_weights import inherit_records, set_encoder_weights
from ..engine.hooks.time_budget_hook import ENDLESS
from ..engine.work_dir_lock import locked
from ..engine.work_dirs import find_checkpoint, fresh_start, replaced_files, resumable_checkpoint
from ..errors import IgniteError
from ..files import check_output_folder, printable
from .checks import check_run, heads
from .configuration import build_runner, building, resolved, running


@safe_checkpoints()
def train(
    cfg: Config,
    resume: bool = False,
    amp: bool = False,
    weights: str | None = None,
    tensorboard: bool = False,
    minutes: float | None = None,
    overwrite: bool = False,
) -> Runner:
    """Train a config; write checkpoints and logs to ``cfg.work_dir``.

    Args:
        cfg: config; it is not changed.
        resume: continue from the latest checkpoint of the work dir; start from scratch if there is none.
        amp: train in mixed precision, see :class:`HalfOptimWrapper <mmseg_ignite.engine.HalfOptimWrapper>`.
        weights: see :func:`mmseg_ignite.engine.set_encoder_weights`.
        tensorboard: also log scalars and pictures to TensorBoard.
        minutes: train for this time instead of the config's schedule and number of iterations, see :class:`TimeBudgetHook
            <mmseg_ignite.engine.hooks.TimeBudgetHook>`.
        overwrite: replace an earlier training in the work dir; it is restored if this one cannot start.

    Raises:
        IgniteError: data, weights or the checkpoint to resume are missing or wrong, the work dir contains another training or
            cannot be written, a score to save by is unknown, the loss is not finite, or TensorBoard is not installed.

    Example:
        >>> cfg = load_config('configs/segformer/segformer_mit-b0_1xb8-20k_ignite-512x512.py', {'data_root': 'data/ignite'})
        >>> runner = train(cfg, amp=True)
    """
    if resume and overwrite:
        raise IgniteError(
            '--resume continues the training in the work dir and --overwrite replaces it: choose one of them.'
        )
    cfg = resolved(cfg)
    check_run(cfg, 'training')
    check_output_folder(cfg.work_dir)
    if (name := printable(cfg.work_dir)) != str(cfg.work_dir):
        raise IgniteError(
            f'the name of the work dir {name} has control characters or is not UTF-8, which mmengine cannot write: rename it.'
        )
    if amp:
        _set_half(cfg)
    if minutes is not None:
        _set_time(cfg, minutes)
    if tensorboard:
        _add_tensorboard(cfg)
    _set_hooks(cfg)
    _set_class_pixels(cfg)
    cfg.resume = resume or bool(cfg.get('resume'))
    if (cfg.get('randomness') or {}).get('deterministic'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # required by deterministic CUDA matrix products
    with locked(cfg.work_dir):
        resumed = _set_start(cfg, weights, overwrite)
        fresh = not resumed and is_main_process()
        with fresh_start(cfg.work_dir, overwrite) if fresh else contextlib.nullcontext():
            if not cfg.get('load_from'):
                with building(cfg):
                    set_encoder_weights(cfg, weights)
                inherit_records(cfg)
            runner = build_runner(cfg, training=True)
        with running(cfg):
            runner.train()
    return runner


def _set_start(cfg: Config, weights: str | None, overwrite: bool) -> bool:
    """Choose the checkpoint to start from, if any, and check that it can be read.

    Returns:
        Whether an earlier training in the work dir is continued.
    """
    latest = resumable_checkpoint(cfg.work_dir) if cfg.resume else None
    if latest is not None:
        cfg.load_from = str(latest)
    elif cfg.resume and not cfg.get('load_from') and (best := replaced_files(cfg.work_dir)):
        raise IgniteError(
            f'{cfg.work_dir} contains {best[0].name}, from which no training can be resumed: start again with --overwrite, '
            'or from these weights in another work dir with --cfg-options load_from=FILE.'
        )
    else:
        for path in filter(None, (cfg.get('load_from'), weights)):
            if overwrite and Path(path).absolute() in [old.absolute() for old in replaced_files(cfg.work_dir)]:
                raise IgniteError(f'{path} belongs to the training that --overwrite replaces: copy it elsewhere first.')
        if cfg.get('load_from'):
            cfg.load_from = str(find_checkpoint(cfg.load_from))
            open_checkpoint(cfg.load_from)
    if cfg.get('load_from'):
        cfg.model.backbone.init_cfg = None  # the checkpoint has all weights: download nothing
    return latest is not None


def _set_hooks(cfg: Config) -> None:
    """Add the hooks that keep a run safe to any config; replace the stock checkpoint hook."""
    hooks = cfg.get('default_hooks') or {}
    checkpoint = hooks.setdefault('checkpoint', dict(type='CheckpointHook'))
    if checkpoint is not None and checkpoint.get('type') in ('CheckpointHook', 'mmengine.CheckpointHook'):
        checkpoint['type'] = 'TissueCheckpointHook'
    cfg.default_hooks = hooks
    custom = list(cfg.get('custom_hooks') or ())
    if not any(type_name(hook) == 'FiniteLossHook' for hook in custom):
        custom.insert(0, dict(type='FiniteLossHook'))
    cfg.custom_hooks = custom


def _set_class_pixels(cfg: Config) -> None:
    """Fill in ``class_pixels`` of every TissueLoss that has a temperature from the index of the training data."""
    losses = []
    for _, head in heads(cfg):
        loss = head.get('loss_decode')
        losses += loss if isinstance(loss, (list, tuple)) else [loss] if loss else []
    losses = [
        loss
        for loss in losses
        if type_name(loss) == 'TissueLoss' and loss.get('temperature') and not loss.get('class_pixels')
    ]
    if not losses:
        return
    with building(cfg):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if not hasattr(dataset, 'class_pixels'):
        raise IgniteError(
            f'{type(dataset).__name__} does not know how many pixels its classes have, which the temperature of TissueLoss '
            'requires: give the loss its class_pixels or class_weight.'
        )
    for loss in losses:
        loss['class_pixels'] = dataset.class_pixels.tolist()


def _set_half(cfg: Config) -> None:
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind == 'OptimWrapper':
        cfg.optim_wrapper.type = 'HalfOptimWrapper'
    elif kind not in ('HalfOptimWrapper', 'AmpOptimWrapper'):
        raise IgniteError(
            f'--amp requires the OptimWrapper, but the config has {kind}: set the precision in the config instead.'
        )


def _set_time(cfg: Config, minutes: float) -> None:
    if not 0 < minutes < float('inf'):
        raise IgniteError(f'--minutes is {minutes}; a number above 0 was expected.')
    if cfg.train_cfg.get('type') != 'IterBasedTrainLoop':
        raise IgniteError(
            f'--minutes requires the IterBasedTrainLoop, but the config has {cfg.train_cfg.get("type")}: remove the option.'
        )
    cfg.param_scheduler, cfg.train_cfg.max_iters = None, ENDLESS
    hook = dict(type='TimeBudgetHook', seconds=60.0 * minutes)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), hook]


def _add_tensorboard(cfg: Config) -> None:
    if find_spec('tensorboard') is None:
        raise IgniteError("--tensorboard requires the package tensorboard: pip install 'mmseg_ignite[tensorboard]'.")
    cfg.setdefault('visualizer', dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]))
    backends = cfg.visualizer.setdefault('vis_backends', [])
    if not any(b.type == 'TensorboardVisBackend' for b in backends):
        backends.append(dict(type='TensorboardVisBackend'))
