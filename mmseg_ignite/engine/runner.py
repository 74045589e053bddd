"""mmengine's runner with safe checkpoints, exact resuming, a readable console, and a lock on its work dir."""

import logging
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from mmengine.hooks import EMAHook
from mmengine.logging import MessageHub, MMLogger, print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, set_random_seed
from mmengine.runner.loops import BaseLoop
from torch.utils.data import DataLoader

from ..environment import hide_broken_torchvision
from ..errors import IgniteError
from ..files import is_ours, result_file
from ..messages import quiet_console
from .checkpoints import open_checkpoint, safe_checkpoints
from .checkpoints.remote import local_file
from .checkpoints.resuming import Resumed, resume
from .checkpoints.saving import save_checkpoint, unwrapped
from .devices import to_device
from .interruption import TrainingStopped, stop_request
from .late_values import LateMessageHub
from .optim_wrappers import predict_in, training_dtype
from .work_dir_lock import locked
from .work_dirs import resumable_checkpoint
from .worker_errors import worker_errors


@RUNNERS.register_module()  # of mmengine, so that runner_type needs no scope
class TissueRunner(Runner):
    """A Runner that loses nothing and lets nobody in; arguments, configs and files are those of mmengine's Runner.

    - Checkpoints are opened by :func:`open_checkpoint <mmseg_ignite.engine.open_checkpoint>` only, wherever a setting names
      one, and written whole or not at all.
    - A resumed run equals an uninterrupted one bit by bit with a CropStreamSampler, or with ``num_workers=0``, if config,
      data, device and processes are the same; else it says why it does not.
    - SIGINT, SIGTERM, SIGHUP and SIGUSR1 save the run and end it, see :class:`.interruption.TrainingStopped`.
    - The work dir is locked, so that two runs cannot write into it.
    - The console shows progress, scores and warnings; the log file holds everything.

    Example:
        In any config of mmseg, so that mmseg's own ``tools/train.py`` uses it::

            custom_imports = dict(imports=['mmseg_ignite'])
            runner_type = 'TissueRunner'
            default_hooks = dict(checkpoint=dict(type='TissueCheckpointHook', by_epoch=False, interval=2000))
    """

    resumed: Resumed | None = None

    def build_logger(self, *args: object, **kwargs: object) -> MMLogger:
        """Build the logger and apply :func:`mmseg_ignite.messages.quiet_console`."""
        logger = super().build_logger(*args, **kwargs)
        quiet_console(logger)
        return logger

    def _log_env(self, env_cfg: dict) -> None:
        """Log the environment, without a torchvision that cannot be imported."""
        hide_broken_torchvision()
        super()._log_env(env_cfg)

    def build_message_hub(self, message_hub: dict | None = None) -> MessageHub:
        """Build an empty :class:`LateMessageHub`: mmengine names it by the second, and an earlier run in this process may
        have it.
        """
        name = (message_hub or {}).get('name', self._experiment_name)
        if message_hub is None:
            MessageHub._instance_dict.pop(name, None)
        if name not in MessageHub._instance_dict:  # of mmengine's class, so that mmengine finds it
            MessageHub._instance_dict[name] = LateMessageHub(name)
        return super().build_message_hub(message_hub)

    def set_randomness(self, seed: int | None, diff_rank_seed: bool = False, deterministic: bool = False) -> None:
        """Seed all processes alike: they build the same weights and share one stream of crops.

        Args:
            seed: None for a random one.
            diff_rank_seed: no effect: in a training each process always draws its own dropout, drop path and augmentations,
                see :meth:`load_or_resume`, and the samplers always have the common seed.
            deterministic: see mmengine's Runner.
        """
        super().set_randomness(seed, deterministic=deterministic)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader whose sampler has the common seed of all processes; ``diff_rank_seed`` has no effect."""
        return Runner.build_dataloader(dataloader, seed)

    def dump_config(self) -> None:
        """Write the resolved config to the work dir; a config of the same name by somebody else is kept."""
        path = Path(self.work_dir) / (Path(self.cfg.filename).name if self.cfg.filename else f'{self.timestamp}.py')
        if path.exists() and not is_ours(path):
            path = path.with_name(f'{path.stem}_{self.timestamp}.py')
        with result_file(path) as partial:
            self.cfg.dump(str(partial))

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop; a ResumableTrainLoop in place of an IterBasedTrainLoop."""
        if isinstance(loop, dict):
            loop = dict(loop)
            if loop.get('type') == 'IterBasedTrainLoop' or loop.get('by_epoch') is False:
                loop.pop('by_epoch', None)
                loop['type'] = 'ResumableTrainLoop'
        return super().build_train_loop(loop)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        """Move the model to the device, see :func:`.devices.to_device`, and wrap it in a distributed run."""
        model = model if is_model_wrapper(model) else to_device(model, get_device())
        return super().wrap_model(model_wrapper_cfg, model)

    def build_optim_wrapper(self, optim_wrapper: object) -> OptimWrapper | OptimWrapperDict:
        """Build the optimizer, a TissueOptimWrapper in place of an OptimWrapper; validations compute in its precision."""
        if isinstance(optim_wrapper, dict) and 'optimizer' in optim_wrapper:
            kind = optim_wrapper.get('type', 'OptimWrapper')
            if kind in ('OptimWrapper', 'mmengine.OptimWrapper', OptimWrapper):
                optim_wrapper = {**optim_wrapper, 'type': 'TissueOptimWrapper'}
        built = super().build_optim_wrapper(optim_wrapper)
        predict_in(unwrapped(self), training_dtype(built), ('val_step',))
        return built

    def train(self) -> torch.nn.Module:
        """Train with the work dir locked, and stop on signals.

        Raises:
            IgniteError: another run uses the work dir, or see :meth:`resume`.
            TrainingStopped: a signal ended the training.
        """
        with safe_checkpoints(), locked(self.work_dir), stop_request.listening():
            try:
                return super().train()
            except (RuntimeError, OSError, EOFError):
                # Another process has stopped, or a loader worker was ended by the same signal.
                if not stop_request.received():
                    raise
                worker_errors.off()
                self._say_stopped(resumable_checkpoint(self.work_dir))
                stop_request.leave()
                raise TrainingStopped(stop_request.signal) from None

    def load_or_resume(self) -> None:
        """Resume from the latest valid checkpoint of the work dir or from ``load_from``, or load weights, or do nothing.

        Before, each of several processes gets its own random numbers: seed + rank. A resumed run continues its own.

        Raises:
            IgniteError: the processes do not find the same checkpoint.
        """
        if self.world_size > 1:
            set_random_seed(self.seed + self.rank)
        if self._has_loaded:
            return
        path = self._load_from
        if self._resume:
            path = path or resumable_checkpoint(self.work_dir)
            found = all_gather_object(None if path is None else Path(path).name)
            if len(set(found)) > 1:
                raise IgniteError(
                    f'the processes find different checkpoints to resume from in {self.work_dir} ({found[0]}, others '
                    f'{next(name for name in found if name != found[0])}): give all machines the same work dir.'
                )
            if path is not None:
                self.resume(str(path))
        elif path is not None:
            self.load_checkpoint(path)
        self._has_loaded = True

    def load_checkpoint(self, filename: str, *args: object, **kwargs: object) -> dict:
        """Load the weights of a checkpoint that fit the model, and warn of those that do not.

        Raises:
            IgniteError: see :func:`open_checkpoint`, or fewer than half of the model's weights are in it.
        """
        with safe_checkpoints():
            checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        weights = checkpoint.get('state_dict', checkpoint)
        shapes = {k.removeprefix('module.'): getattr(v, 'shape', None) for k, v in weights.items()}
        own = unwrapped(self).state_dict()
        missing = sorted(key for key, value in own.items() if shapes.get(key) != value.shape)
        if 2 * len(missing) > len(own):
            raise IgniteError(
                f'{filename} is a checkpoint of another model: {len(missing)} of {len(own)} weights are missing or have '
                f'another shape, e.g. {missing[0]}: use the config it was trained with.'
            )
        if missing:
            print_log(
                f'{len(missing)} of {len(own)} weights are not in {filename} and keep initial values, e.g. {missing[0]}',
                'current',
                logging.WARNING,
            )
        return checkpoint

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: object = 'default',
    ) -> None:
        """Continue from a checkpoint: weights, optimizer, schedules, averages, log history, random state.

        What differs from the run that wrote it (config, data, processes, device, versions) is printed.

        Args:
            filename: checkpoint of a training, a path or an address.
            resume_optimizer: must be True; weights alone are loaded by ``load_from`` without ``resume``.
            resume_param_scheduler: must be True.
            map_location: not used: values are copied to the devices of the model.

        Raises:
            IgniteError: the checkpoint does not fit, and nothing was loaded; see
                :func:`mmseg_ignite.engine.checkpoints.resuming.resume`.
        """
        if not (resume_optimizer and resume_param_scheduler):
            raise IgniteError(
                f'{filename} can only be resumed from as a whole: set load_from without resume for its weights.'
            )
        checkpoint = open_checkpoint(local_file(filename))
        self.train_loop  # noqa: B018  builds the loop
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        seed = (checkpoint.get('meta') or {}).get('seed')
        self.resumed = resume(self, checkpoint, filename)
        if type(seed) is int and seed != self.seed:
            self.resumed.notes.append(f'seed: {seed} before, {self.seed} now: this changes the training')
        for hook in self.hooks:
            if not isinstance(hook, EMAHook):  # its averages are loaded
                hook.after_load_checkpoint(self, checkpoint)
        self._has_loaded = True
        lines = [f'resumed from {filename} after {self.resumed.iteration} iterations', *self.resumed.notes]
        print_log('\n    '.join(lines), 'current', logging.WARNING if self.resumed.notes else logging.INFO)

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Write a checkpoint, whole or not at all; with ``save_optimizer`` every process must call this.

        Args:
            out_dir: local folder.
            filename: name in the folder.
            file_client_args, backend_args: must be None, since other storages cannot replace a file safely.
            save_optimizer: write what a run can be resumed from, else weights only.
            save_param_scheduler: also write the schedules.
            meta: added to the checkpoint's ``meta``.
            by_epoch: whether ``epoch`` or ``iter`` has just ended; used where ``meta`` does not state them.

        Raises:
            IgniteError: the file cannot be written, or another storage was asked for.
        """
        if file_client_args or backend_args:
            raise IgniteError(
                f'{out_dir} is not a local folder, and checkpoints are written to local folders only: remove backend_args.'
            )
        meta = dict(meta or {})
        meta.setdefault('epoch', self.epoch + by_epoch)
        meta.setdefault('iter', self.iter + (not by_epoch))
        due = getattr(self.train_loop, 'validation_due', None)
        pending = due is not None and due(meta['iter'])
        save_checkpoint(self, Path(out_dir) / filename, meta, save_optimizer, pending, save_param_scheduler)

    def stop(self) -> None:
        """Save the run between two iterations and end it.

        Raises:
            TrainingStopped: always.
        """
        worker_errors.off()
        saved = None
        hook = next((hook for hook in self.hooks if hasattr(hook, 'save_now')), None)
        if self.iter > 0 and hook is not None:
            saved = hook.save_now(self)
        elif self.iter > 0:  # with mmengine's own hook
            saved = Path(self.work_dir) / f'iter_{self.iter}.pth'
            self.save_checkpoint(self.work_dir, saved.name, meta=dict(iter=self.iter, epoch=self.epoch))
        self._say_stopped(saved)
        stop_request.leave()
        raise TrainingStopped(stop_request.signal)

    def _say_stopped(self, saved: Path | None) -> None:
        way = f'saved {saved.name}; continue with --resume' if saved else 'nothing has been saved; start again'
        print_log(f'stopped by {stop_request.name} after {self.iter} iterations: {way}.', 'current', logging.WARNING)
