"""Training by mmengine's runner."""

import os
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ..engine.checkpoints import open_checkpoint, safe_checkpoints
from ..engine.distributed import prepare_launch
from ..engine.hooks.time_budget_hook import ENDLESS
from ..engine.runner import QuietRunner
from ..errors import IgniteError
from ..models.weights import set_encoder_weights
from .configuration import check_data


@safe_checkpoints()
def train(
    cfg: Config,
    resume: bool = False,
    amp: bool = False,
    weights: 'str | None' = None,
    tensorboard: bool = False,
    minutes: 'float | None' = None,
) -> Runner:
    """Train a config; checkpoints, logs and ``curves.png`` go to ``cfg.work_dir``.

    Args:
        resume: go on from the newest checkpoint of the work dir; starts afresh, and says so, if there is none.
        amp: automatic mixed precision, see :class:`HalfOptimWrapper <mmseg_ignite.engine.HalfOptimWrapper>`.
        weights: see :func:`mmseg_ignite.models.set_encoder_weights`.
        tensorboard: log scalars and pictures to TensorBoard beside mmengine's own files.
        minutes: train so long, whatever the machine does in it, see :class:`TimeBudgetHook
            <mmseg_ignite.engine.hooks.TimeBudgetHook>`; the config's schedule and number of iterations do not count then.

    Raises:
        IgniteError: data, weights or the checkpoint to resume are missing or wrong, or TensorBoard is not installed.
    """
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    if amp:
        _set_half(cfg)
    if minutes is not None:
        _set_time(cfg, minutes)
    if tensorboard:
        _add_tensorboard(cfg)
    cfg.resume = resume or bool(cfg.get('resume'))
    latest = Path(cfg.work_dir) / 'last_checkpoint'
    if cfg.resume and not cfg.get('load_from') and latest.is_file():
        open_checkpoint(latest.read_text().strip())  # fails with a sentence before the data are opened
        cfg.model.backbone.init_cfg = None  # the checkpoint brings all weights: nothing to fetch
    else:
        set_encoder_weights(cfg, weights)
    if (cfg.get('randomness') or {}).get('deterministic'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # else CUDA's matrix products are refused
    prepare_launch(cfg)
    runner = QuietRunner.from_cfg(cfg)
    runner.train()
    return runner


def _set_half(cfg: Config) -> None:
    kind = cfg.optim_wrapper.type
    if kind == 'OptimWrapper':
        cfg.optim_wrapper.type = 'HalfOptimWrapper'
    elif kind not in ('HalfOptimWrapper', 'AmpOptimWrapper'):
        raise IgniteError(
            f'--amp goes with the OptimWrapper, the config has {kind}: set the precision in the config instead.'
        )


def _set_time(cfg: Config, minutes: float) -> None:
    if not 0 < minutes < float('inf'):
        raise IgniteError(f'the training is to take {minutes} minutes; a number above 0 was expected: mend --minutes.')
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
    backends = cfg.visualizer.setdefault('vis_backends', [])
    if not any(b.type == 'TensorboardVisBackend' for b in backends):
        backends.append(dict(type='TensorboardVisBackend'))
