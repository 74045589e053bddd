"""Training by mmengine's runner."""

import contextlib
import os
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ..engine.checkpoints import open_checkpoint, safe_checkpoints
from ..engine.distributed import is_main_process, prepare_launch
from ..engine.encoder_weights import inherit_records, set_encoder_weights
from ..engine.hooks.time_budget_hook import ENDLESS
from ..engine.work_dirs import checkpoints, find_checkpoint, fresh_start, latest_checkpoint, replaced_files
from ..errors import IgniteError
from ..files import check_output_folder, printable
from .checks import check_classes, check_data, check_parts, check_score_names
from .configuration import build_runner, building, resolved


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
    """Train a config; checkpoints and logs go to ``cfg.work_dir``.

    Args:
        cfg: a config, which stays as it is.
        resume: continue from the newest checkpoint of the work dir; start afresh if there is none.
        amp: automatic mixed precision, see :class:`HalfOptimWrapper <mmseg_ignite.engine.HalfOptimWrapper>`.
        weights: see :func:`mmseg_ignite.engine.set_encoder_weights`.
        tensorboard: log scalars and pictures to TensorBoard beside mmengine's own files.
        minutes: train for this time, see :class:`TimeBudgetHook <mmseg_ignite.engine.hooks.TimeBudgetHook>`; the config's
            schedule and number of iterations do not count then.
        overwrite: replace the earlier training in the work dir, if there is one; it is put back if this one cannot start.

    Raises:
        IgniteError: data, weights or the checkpoint to resume are missing or wrong, the work dir holds another training or
            cannot be written, a score to save by is unknown, the loss is not finite, or TensorBoard is not installed.
    """
    if resume and overwrite:
        raise IgniteError(
            '--resume continues the training in the work dir and --overwrite replaces it: give one of them.'
        )
    cfg = resolved(cfg)
    check_parts(cfg, 'training')
    check_score_names(cfg)
    check_classes(cfg, 'train_dataloader', 'val_dataloader')
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    check_output_folder(cfg.work_dir)
    if printable(cfg.work_dir) != str(cfg.work_dir):
        name = printable(cfg.work_dir)
        raise IgniteError(f'the name of the work dir {name} is not UTF-8, which mmengine cannot write: rename it.')
    if amp:
        _set_half(cfg)
    if minutes is not None:
        _set_time(cfg, minutes)
    if tensorboard:
        _add_tensorboard(cfg)
    _set_hooks(cfg)
    cfg.resume = resume or bool(cfg.get('resume'))
    resumed = _set_start(cfg, weights, overwrite)
    if (cfg.get('randomness') or {}).get('deterministic'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # else CUDA's matrix products are refused
    prepare_launch(cfg)
    fresh = not resumed and is_main_process()
    with fresh_start(cfg.work_dir, overwrite) if fresh else contextlib.nullcontext():
        runner = build_runner(cfg, training=True)
    runner.train()
    return runner


def _set_start(cfg: Config, weights: str | None, overwrite: bool) -> bool:
    """Choose the weights to start from, and read them, so that a fault is found before the data are opened.

    Returns:
        Whether an earlier training of the work dir is continued.
    """
    latest = latest_checkpoint(cfg.work_dir) if cfg.resume else None
    if latest is not None:
        _check_resumable(latest)
        cfg.load_from = str(latest)
        cfg.model.backbone.init_cfg = None  # the checkpoint brings all weights: nothing to fetch
        return True
    if cfg.resume and not cfg.get('load_from') and (best := replaced_files(cfg.work_dir)):
        raise IgniteError(
            f'{cfg.work_dir} holds {best[0].name}, from which no training can be resumed: start again with --overwrite, or '
            'from these weights in another work dir with --cfg-options load_from=FILE.'
        )
    for path in filter(None, (cfg.get('load_from'), weights)):
        if overwrite and Path(path).absolute() in [old.absolute() for old in replaced_files(cfg.work_dir)]:
            raise IgniteError(f'{path} is part of the training that --overwrite replaces: copy it elsewhere first.')
    if cfg.get('load_from'):
        cfg.load_from = str(find_checkpoint(cfg.load_from))
        open_checkpoint(cfg.load_from)
        cfg.model.backbone.init_cfg = None
    else:
        with building(cfg):
            set_encoder_weights(cfg, weights)
        inherit_records(cfg)
    return False


def _check_resumable(latest: Path) -> None:
    try:
        open_checkpoint(latest)
    except IgniteError as error:
        others = [path.name for path in checkpoints(latest.parent) if path.name != latest.name]
        way = (
            f'delete {latest.name} and run again, which then continues from {others[0]}'
            if others
            else 'start again with --overwrite'
        )
        raise IgniteError(f'{str(error).rstrip(".")}. To continue: {way}.') from error


def _set_hooks(cfg: Config) -> None:
    """Give any config the hooks that keep a run safe, in place of stock's checkpoint hook."""
    hooks = cfg.get('default_hooks') or {}
    checkpoint = hooks.setdefault('checkpoint', dict(type='CheckpointHook'))
    if checkpoint is not None and checkpoint.get('type') in ('CheckpointHook', 'mmengine.CheckpointHook'):
        checkpoint['type'] = 'TissueCheckpointHook'
    cfg.default_hooks = hooks
    custom = list(cfg.get('custom_hooks') or ())
    if not any(str(hook.get('type')).split('.')[-1] == 'FiniteLossHook' for hook in custom):
        custom.insert(0, dict(type='FiniteLossHook'))
    cfg.custom_hooks = custom


def _set_half(cfg: Config) -> None:
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind == 'OptimWrapper':
        cfg.optim_wrapper.type = 'HalfOptimWrapper'
    elif kind not in ('HalfOptimWrapper', 'AmpOptimWrapper'):
        raise IgniteError(
            f'--amp goes with the OptimWrapper, the config has {kind}: set the precision in the config instead.'
        )


def _set_time(cfg: Config, minutes: float) -> None:
    if not 0 < minutes < float('inf'):
        raise IgniteError(
            f'the training is to take {minutes} minutes; a number above 0 was expected: correct --minutes.'
        )
    if cfg.train_cfg.get('type') != 'IterBasedTrainLoop':
        raise IgniteError(
            f'--minutes goes with the IterBasedTrainLoop, the config has {cfg.train_cfg.get("type")}: leave it out.'
        )
    cfg.param_scheduler, cfg.train_cfg.max_iters = None, ENDLESS
    hook = dict(type='TimeBudgetHook', seconds=60.0 * minutes)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), hook]


def _add_tensorboard(cfg: Config) -> None:
    if find_spec('tensorboard') is None:
        raise IgniteError("--tensorboard needs the package tensorboard: pip install 'mmseg_ignite[tensorboard]'.")
    cfg.setdefault('visualizer', dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]))
    backends = cfg.visualizer.setdefault('vis_backends', [])
    if not any(b.type == 'TensorboardVisBackend' for b in backends):
        backends.append(dict(type='TensorboardVisBackend'))
