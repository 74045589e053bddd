"""Checkpoints with a training record, in a work dir that can be moved."""

import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...datasets.crop_stream import CropStream
from ...datasets.ignite import DATA_ROOT, DEFAULT_CROPS, PROTOCOL
from ...errors import IgniteError
from ..training_record import TrainingRecord

_DEFAULTS = dict(data_root=DATA_ROOT, protocol=PROTOCOL)
_CROPS = {name: p.default for name, p in inspect.signature(CropStream).parameters.items()} | DEFAULT_CROPS
"""Values that the data sets have unless set."""


@HOOKS.register_module()
class TissueCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook with three guarantees; arguments and files are the same.

    - ``meta['mmseg_ignite']`` of every checkpoint is a :class:`TrainingRecord
      <mmseg_ignite.engine.training_record.TrainingRecord>`: the patients it has seen, including those of its initial weights.
    - Checkpoints refer to each other (``best_ckpt``, ``last_ckpt``) by file name, so a work dir can be moved, copied and
      renamed: a run that is resumed in a copy never touches the original.
    - Weights that are not finite are never saved, so they never replace a good checkpoint.

    Raises:
        IgniteError: the weights are not finite, or a top-level ``data_root``, ``protocol`` or ``crops`` of the config did not
            reach a data set.
    """

    def before_run(self, runner: Runner) -> None:
        """Check that the top-level settings of the config reached its data sets."""
        self._record: TrainingRecord | None = None
        self._earlier: TrainingRecord | None = None
        _check_shared_settings(runner.cfg)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the record of the checkpoint that this run starts from."""
        self._earlier = TrainingRecord.of_meta(checkpoint.get('meta'))

    def before_train(self, runner: Runner) -> None:
        """Create the record; look for the best checkpoint of a resumed run in the folder of this run."""
        super().before_train(runner)
        info = runner.message_hub.runtime_info
        for key in [key for key in info if _is_path(key)]:
            runner.message_hub.update_info(key, str(Path(self.out_dir) / Path(str(info[key])).name))
        if self.save_best is not None:
            if len(self.key_indicators) == 1:
                self.best_ckpt_path = info.get('best_ckpt')
            else:
                self.best_ckpt_path_dict = {key: info.get(f'best_ckpt_{key}') for key in self.key_indicators}
        val = runner.val_loop.dataloader.dataset if runner.val_loop is not None else None
        inherited = TrainingRecord.of_meta(runner.cfg.get('inherited_record'))
        self._record = TrainingRecord.of_datasets(runner.train_dataloader.dataset, val)
        self._record = self._record.following(self._earlier).following(inherited)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Save at the interval, if the weights are finite."""
        if not self.by_epoch and (
            self.every_n_train_iters(runner, self.interval, self.save_begin)
            or (self.save_last and self.is_last_train_iter(runner))
        ):
            check_finite(runner)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save after an epoch, if the weights are finite."""
        if self.by_epoch:
            check_finite(runner)
        super().after_train_epoch(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Save the best weights, if they are finite."""
        check_finite(runner)
        super().after_val_epoch(runner, metrics or {})

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the record; remove folders from the paths."""
        if self._record is not None:
            checkpoint['meta'].update(self._record.as_meta())
        hub = checkpoint.get('message_hub')
        if hub:
            info = {k: Path(str(v)).name if _is_path(k) else v for k, v in hub['runtime_info'].items()}
            checkpoint['message_hub'] = {**hub, 'runtime_info': info}


def _is_path(key: str) -> bool:
    return key == 'last_ckpt' or key.startswith('best_ckpt')


def check_finite(runner: Runner) -> None:
    """Raise IgniteError if a weight of the model is NaN or infinite."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    tensors = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in tensors.values()]).tolist()  # one wait for the device
    if not all(finite):
        name = next(name for name, good in zip(tensors, finite) if not good)
        raise IgniteError(
            f'the weights are not finite after {runner.iter + 1} iterations, e.g. {name}, and were not saved: lower the '
            'learning rate or clip gradients (optim_wrapper.clip_grad.max_norm=1), and continue from the last checkpoint '
            'with --resume.'
        )


def _check_shared_settings(cfg: Config) -> None:
    """Raise IgniteError if a top-level setting did not reach a data set, because plain mmengine read the config."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset') or {}
        kind = str(dataset.get('type')).split('.')[-1]
        if kind not in ('IGNITEDataset', 'IGNITECropDataset'):
            continue
        lost = [f'{key}={value!r}' for key, value in _lost(cfg, dataset, _DEFAULTS).items()]
        if kind == 'IGNITECropDataset' and (crops := _lost(cfg.get('crops') or {}, dataset.get('crops') or {}, _CROPS)):
            lost.append(f'crops={crops!r}')
        if lost:
            raise IgniteError(
                f'{", ".join(lost)} at the top of the config does not reach {name}, since the config was not read by '
                f'mmseg_ignite.apis.load_config: write {name} = dict(dataset=dict({", ".join(lost)})).'
            )


def _lost(shared: Mapping, own: Mapping, defaults: dict) -> dict:
    """Return the shared settings that differ from the defaults and that a data set does not set itself."""
    lost = {key: shared[key] for key in defaults if key in shared and key not in own}
    return {key: value for key, value in lost.items() if repr(value).strip('[]()') != repr(defaults[key]).strip('[]()')}
