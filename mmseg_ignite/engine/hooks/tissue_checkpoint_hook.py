"""When a training is saved, and which checkpoints are kept."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...datasets.crop_stream import CropStream
from ...datasets.ignite import DATA_ROOT, DEFAULT_CROPS, PROTOCOL
from ...errors import IgniteError
from ..checkpoints.random_state import random_state, set_random_state
from ..checkpoints.saving import save_checkpoint, unwrapped
from ..checkpoints.writing import remove_partial_files, write_text
from ..compatibility import is_training
from ..interruption import stop_request
from ..training_record import TrainingRecord
from ..work_dirs import POINTER
from .finite_loss_hook import FiniteLossHook

_DEFAULTS = dict(data_root=DATA_ROOT, protocol=PROTOCOL)
_CROPS = {name: p.default for name, p in inspect.signature(CropStream).parameters.items()} | DEFAULT_CROPS
"""Values that the data sets have unless set."""


@HOOKS.register_module()
class TissueCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook that never loses a run; arguments and files are the same.

    - A checkpoint is written whole (temporary file, fsync, rename), then ``last_checkpoint``, and only then older ones are
      removed, so at every moment a valid one is on the disk.
    - A checkpoint is also written before each validation, and again after it with the best score; those between two intervals
      are removed with the next one.
    - ``meta['mmseg_ignite']`` of every checkpoint is a :class:`TrainingRecord
      <mmseg_ignite.engine.training_record.TrainingRecord>`: the patients it has seen, including those of its initial weights.
    - Only files in the run's own folder are removed, by names that this hook makes; a path in a checkpoint is never used. A
      work dir can be moved, copied and renamed.
    - Weights that are not finite are never saved, so they never replace a good checkpoint.

    :class:`TissueRunner <mmseg_ignite.engine.runner.TissueRunner>` writes the files and resumes from them.

    Raises:
        IgniteError: the weights are not finite, a file cannot be written, ``out_dir`` is not the work dir, or a top-level
            ``data_root``, ``protocol`` or ``crops`` of the config did not reach a data set.
    """

    def before_run(self, runner: Runner) -> None:
        """Check that the top-level settings of the config reached its data sets."""
        self._record: TrainingRecord | None = None
        self._earlier: TrainingRecord | None = None
        self._saved = self._validated = -1  # positions of the latest checkpoint and of the latest validation
        self._outdated: list[Path] = []  # best checkpoints that a better one has replaced
        self._random: dict | None = None
        self._best_is_new = False
        if self.out_dir is not None and Path(self.out_dir).resolve() != Path(runner.work_dir).resolve():
            raise IgniteError(
                f'out_dir of the checkpoint hook is {self.out_dir}, where a resumed run would not look; the work dir '
                f'{runner.work_dir} was expected: remove out_dir, and set the work dir.'
            )
        _check_shared_settings(runner.cfg)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the record of the checkpoint that this run starts from."""
        self._earlier = TrainingRecord.of_meta(checkpoint.get('meta'))

    def before_train(self, runner: Runner) -> None:
        """Create the record; look for the best checkpoint of a resumed run in the folder of this run."""
        self.out_dir = runner.work_dir
        runner.logger.info(f'Checkpoints will be saved to {self.out_dir}.')
        if is_main_process():
            remove_partial_files(self.out_dir)
        info = runner.message_hub.runtime_info
        for score in self._scores():
            key = self._key('best_ckpt', score)
            name = Path(str(info[key])).name if info.get(key) else ''
            path = Path(self.out_dir) / name
            known = name.startswith('best_') and path.suffix == '.pth' and path.is_file() and not path.is_symlink()
            self._set_best(runner, score, str(path) if known else None)
        resumed = getattr(runner, 'resumed', None)
        if resumed is not None and resumed.path.resolve().parent == Path(self.out_dir).resolve():
            self._saved, self.last_ckpt = self._position(runner), str(resumed.path)
            if is_main_process():
                self._remove_older(self._saved)  # a run was killed before it could
        val = runner.val_loop.dataloader.dataset if runner.val_loop is not None else None
        inherited = TrainingRecord.of_meta(runner.cfg.get('inherited_record'))
        self._record = TrainingRecord.of_datasets(runner.train_dataloader.dataset, val)
        self._record = self._record.following(self._earlier).following(inherited)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Save at the interval and after the last iteration."""
        last = self.save_last and self.is_last_train_iter(runner)
        if not self.by_epoch and (self.every_n_train_iters(runner, self.interval, self.save_begin) or last):
            runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations')
            self._save(runner, runner.iter + 1)
        if self.by_epoch and stop_request.received():  # ResumableTrainLoop stops a training by iterations
            runner.stop()

    def after_train_epoch(self, runner: Runner) -> None:
        """Save at the interval and after the last epoch."""
        last = self.save_last and self.is_last_train_epoch(runner)
        if self.by_epoch and (self.every_n_epochs(runner, self.interval, self.save_begin) or last):
            runner.logger.info(f'Saving checkpoint at {runner.epoch + 1} epochs')
            self._save(runner, runner.epoch + 1)

    def before_val(self, runner: Runner) -> None:
        """Save before a validation in a training, and keep the random state, which the validation must not change."""
        if not is_training(runner):
            return
        self._random = random_state()
        if not self.by_epoch and self._saved != runner.iter:
            self._save(runner, runner.iter)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Stop in a validation if a signal asked for it; the run was saved before the validation."""
        if is_training(runner) and stop_request.received():
            runner.stop()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Save the best weights, if they are finite."""
        if not metrics:
            runner.logger.warning('The validation gives no score, so no best checkpoint is saved.')
        elif is_training(runner):
            check_finite(runner, self._position(runner))
            self._save_best_checkpoint(runner, metrics)

    def after_val(self, runner: Runner) -> None:
        """Save again, with the scores and without a pending validation; then remove what a better checkpoint replaced."""
        if not is_training(runner):
            return
        if self._random is not None:
            set_random_state(self._random)
            self._random = None
        self._validated = self._position(runner)
        if self._saved >= 0 and (not self.by_epoch or self._best_is_new):
            self._save(runner, self._position(runner))
        self._best_is_new = False
        for path in self._outdated if is_main_process() else ():
            path.unlink(missing_ok=True)
        self._outdated = []

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the record; remove folders from the paths."""
        if self._record is not None:
            checkpoint['meta'].update(self._record.as_meta())
        info = checkpoint.get('message_hub', {}).get('runtime_info', {})
        for key in info:
            if key == 'last_ckpt' or key.startswith('best_ckpt'):
                info[key] = Path(str(info[key])).name

    def save_now(self, runner: Runner) -> Path | None:
        """Save between two iterations; return the checkpoint to resume from, None if there is none yet."""
        if not self.by_epoch and self._saved != runner.iter:
            self._save(runner, runner.iter)
        return Path(self.last_ckpt) if self.last_ckpt else None

    def _save(self, runner: Runner, position: int) -> None:
        """Write the checkpoint of this position, then the pointer, then remove older ones."""
        check_finite(runner, position)
        path = Path(self.out_dir) / self.filename_tmpl.format(position)
        self.last_ckpt = str(path)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        meta = dict(epoch=position, iter=runner.iter) if self.by_epoch else dict(epoch=runner.epoch, iter=position)
        due = getattr(runner.train_loop, 'validation_due', None)
        pending = not self.by_epoch and due is not None and due(position) and self._validated != position
        save_checkpoint(runner, path, meta, self.save_optimizer, pending, self.save_param_scheduler)
        self._saved = position
        if is_main_process():
            write_text(Path(runner.work_dir) / POINTER, str(path))
            self._remove_older(position)

    def _remove_older(self, position: int) -> None:
        """Remove checkpoints before this position: those between two intervals, and all but the latest ``max_keep_ckpts``."""
        pattern = re.compile(re.escape(self.filename_tmpl).replace(re.escape('{}'), r'(\d+)'))
        found = {
            int(number[1]): path
            for path in Path(self.out_dir).iterdir()
            if (number := pattern.fullmatch(path.name)) and path.is_file() and not path.is_symlink()
        }
        begin, interval = self.save_begin or 0, max(self.interval, 1)
        older = sorted((number for number in found if number < position), reverse=True)
        regular = [n for n in older if self.interval > 0 and n >= begin and (n - begin) % interval == 0]
        kept = regular if self.max_keep_ckpts <= 0 else regular[: self.max_keep_ckpts - 1]
        for number in set(older) - set(kept):
            found[number].unlink(missing_ok=True)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Write the weights if a score is better than before; the earlier best ones stay until the run is saved again."""
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        position = self._position(runner)
        for score, rule in zip(self.key_indicators, self.rules):
            key = self._key('best_score', score)
            best = runner.message_hub.runtime_info.get(key, self.init_value_map[rule])
            value = metrics[score]
            if value is None or not self.is_better_than[score](value, best):
                continue
            path = Path(self.out_dir) / f'best_{score}_{self.filename_tmpl.format(position)}'.replace('/', '_')
            earlier = runner.message_hub.runtime_info.get(self._key('best_ckpt', score))
            runner.message_hub.update_info(key, float(value))
            self._set_best(runner, score, str(path))
            save_checkpoint(runner, path, dict(epoch=runner.epoch, iter=runner.iter), resumable=False)
            if earlier and earlier != str(path):
                self._outdated.append(Path(earlier))
            self._best_is_new = True
            runner.logger.info(f'best checkpoint so far: {path.name}, {score} {value:0.4f}')

    def _scores(self) -> list[str]:
        return [score for score in self.key_indicators if score != 'auto'] if self.save_best else []

    def _key(self, name: str, score: str) -> str:
        """Return mmengine's key in the message hub, which has the score's name only if there are several."""
        return name if len(self.key_indicators) == 1 else f'{name}_{score}'

    def _set_best(self, runner: Runner, score: str, path: str | None) -> None:
        key = self._key('best_ckpt', score)
        if path is None:
            runner.message_hub.runtime_info.pop(key, None)
        else:
            runner.message_hub.update_info(key, path)
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[score] = path

    def _position(self, runner: Runner) -> int:
        return runner.epoch if self.by_epoch else runner.iter


def check_finite(runner: Runner, position: int) -> None:
    """Raise IgniteError if the last loss or a weight of the model is NaN or infinite."""
    for hook in runner.hooks:
        if isinstance(hook, FiniteLossHook):
            hook.check()  # it names the batch
    tensors = {name: value for name, value in unwrapped(runner).state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in tensors.values()]).tolist()  # one wait for the device
    if not all(finite):
        name = next(name for name, good in zip(tensors, finite) if not good)
        raise IgniteError(
            f'the weights are not finite at iteration {position}, e.g. {name}, and were not saved: lower the '
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
