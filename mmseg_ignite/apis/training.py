"""Training by mmengine's runner."""

from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ..engine.checkpoints import open_checkpoint
from ..engine.distributed import prepare_launch
from ..errors import IgniteError
from ..models.weights import set_encoder_weights
from .configuration import check_data


def train(
    cfg: Config, resume: bool = False, amp: bool = False, weights: 'str | None' = None, tensorboard: bool = False
) -> Runner:
    """Train a config; checkpoints, logs and ``curves.png`` go to ``cfg.work_dir``.

    Args:
        resume: go on from the newest checkpoint of the work dir; starts afresh, and says so, if there is none.
        amp: automatic mixed precision.
        weights: see :func:`mmseg_ignite.models.set_encoder_weights`.
        tensorboard: log scalars and pictures to TensorBoard beside mmengine's own files.

    Raises:
        IgniteError: data, weights or the checkpoint to resume are missing or wrong, or TensorBoard is not installed.
    """
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    if amp and cfg.optim_wrapper.type != 'AmpOptimWrapper':
        if cfg.optim_wrapper.type != 'OptimWrapper':
            raise IgniteError(
                f'--amp goes with the OptimWrapper, the config has {cfg.optim_wrapper.type}: set the '
                'precision in the config instead.'
            )
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if tensorboard:
        _add_tensorboard(cfg)
    cfg.resume = resume or bool(cfg.get('resume'))
    latest = Path(cfg.work_dir) / 'last_checkpoint'
    if cfg.resume and not cfg.get('load_from') and latest.is_file():
        open_checkpoint(latest.read_text().strip())  # fails with a sentence before the data are opened
        cfg.model.backbone.init_cfg = None  # the checkpoint brings all weights: nothing to fetch
    else:
        set_encoder_weights(cfg, weights)
    prepare_launch(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def _add_tensorboard(cfg: Config) -> None:
    if find_spec('tensorboard') is None:
        raise IgniteError("--tensorboard needs the package tensorboard: pip install 'mmseg_ignite[tensorboard]'.")
    backends = cfg.visualizer.setdefault('vis_backends', [])
    if not any(b.type == 'TensorboardVisBackend' for b in backends):
        backends.append(dict(type='TensorboardVisBackend'))
