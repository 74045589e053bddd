"""What a checkpoint of a training contains."""

import time
from collections.abc import Mapping
from pathlib import Path

import mmengine
import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import EarlyStoppingHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ...errors import IgniteError
from ..compatibility import accumulation_steps
from .contents import plain
from .random_state import gather_random_states
from .settings import flat_settings
from .writing import write_checkpoint

STATE = 'mmseg_ignite'
"""Key of a checkpoint under which the state stands that mmengine's runner does not store."""
FORMAT = 1
_OF_THIS_RUN = (
    'cfg', 'seed', 'experiment_name', 'mmengine_version', 'dataset_meta', 'loop_stage', 'max_iters', 'max_epochs', 'iter',
    'epoch', 'eta', 'last_ckpt', 'keep_ckpt_ids',
)  # fmt: skip
"""Entries of the message hub that each run writes anew."""


def unwrapped(runner: Runner) -> torch.nn.Module:
    """Return the model of a runner without the wrapper of a distributed run."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def checkpoint_of(
    runner: Runner, meta: dict, random_states: list[dict] | None, validation_pending: bool, schedulers: bool = True
) -> dict:
    """Return the checkpoint of a training at this moment, with plain content only.

    The keys are those of mmengine, which can resume from it too. ``mmseg_ignite`` has the rest of an exact resume: the random
    states of all processes, the log history, gradients in accumulation, the settings of the config, and whether the
    validation of this iteration is still to be done.

    Args:
        meta: ``iter`` and ``epoch``, and what else to store as ``meta``.
        random_states: of all processes; None for weights that are not resumed from.
        validation_pending: whether a validation follows this iteration and has not been done.
        schedulers: whether to store the schedules.

    Raises:
        IgniteError: an optimizer or a schedule has a state that cannot be stored.
    """
    info = {key: value for key, value in runner.message_hub.runtime_info.items() if key not in _OF_THIS_RUN}
    info = _storable(info)
    dataset_meta = getattr(runner.train_dataloader.dataset, 'metainfo', None)
    meta = dict(
        meta,
        cfg=runner.cfg.pretty_text,
        seed=runner.seed,
        experiment_name=runner.experiment_name,
        time=time.strftime('%Y%m%d_%H%M%S', time.localtime()),
        mmengine_version=mmengine.__version__,
        **(dict(dataset_meta=dataset_meta) if dataset_meta is not None else {}),
    )
    checkpoint = dict(
        meta=_storable(meta),
        state_dict=dict(plain(unwrapped(runner).state_dict())),
        message_hub=dict(log_scalars={}, runtime_info=info, resumed_keys=dict.fromkeys(info, True)),
    )
    if random_states is None:
        return checkpoint
    try:
        checkpoint['optimizer'] = plain(runner.optim_wrapper.state_dict())
        if schedulers and runner.param_schedulers is not None:
            checkpoint['param_schedulers'] = _states(runner.param_schedulers)
    except TypeError as error:
        raise IgniteError(f'the optimizer or a schedule cannot be stored ({error}): use others.') from error
    checkpoint[STATE] = dict(
        format=FORMAT,
        random=random_states,
        history=_history(runner),
        processes=get_world_size(),
        batch_size=getattr(runner.train_dataloader, 'batch_size', None),
        device=get_device(),
        torch=str(torch.__version__),
        validation_pending=validation_pending,
        stop_training=bool(getattr(runner.train_loop, 'stop_training', False)),
        early_stopping=[
            dict(wait_count=h.wait_count, best_score=float(h.best_score)) for h in early_stopping_hooks(runner)
        ],
        gradients=_gradients(runner),
        settings=flat_settings(runner.cfg.to_dict()),
    )
    return checkpoint


def save_checkpoint(
    runner: Runner,
    path: str | Path,
    meta: dict,
    resumable: bool = True,
    validation_pending: bool = False,
    schedulers: bool = True,
) -> None:
    """Write :func:`checkpoint_of` a training; all processes of a distributed run must call this if it is ``resumable``.

    Raises:
        IgniteError: the file cannot be written; no partial file is left.
    """
    random_states = gather_random_states() if resumable else None
    if not is_main_process():
        return
    checkpoint = checkpoint_of(runner, meta, random_states, validation_pending, schedulers)
    runner.call_hook('before_save_checkpoint', checkpoint=checkpoint)
    checkpoint = plain(checkpoint)
    _share_frozen(checkpoint, unwrapped(runner))
    write_checkpoint(checkpoint, path)


def _share_frozen(checkpoint: dict, model: torch.nn.Module) -> None:
    """Store parameters that are not trained once: their averages are the same tensors."""
    averages, weights = checkpoint.get('ema_state_dict'), checkpoint['state_dict']
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    for name in frozen if isinstance(averages, dict) else ():
        if f'module.{name}' in averages and name in weights:
            averages[f'module.{name}'] = weights[name]


def early_stopping_hooks(runner: Runner) -> list[EarlyStoppingHook]:
    """Return the early-stopping hooks of a run in order."""
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]


def _storable(values: Mapping) -> dict:
    """Return the values of a mapping that can be stored; a hook of somebody else may keep any object there."""
    found = {}
    for key, value in values.items():
        try:
            found[str(key)] = plain(value)
        except TypeError:
            continue
    return found


def _states(schedulers: object) -> object:
    if isinstance(schedulers, Mapping):
        return {name: _states(part) for name, part in schedulers.items()}
    return [plain(scheduler.state_dict()) for scheduler in schedulers]


def _history(runner: Runner) -> dict:
    """Return every logged number: values and weights as float64 tensors (N,)."""
    found = {}
    for name, buffer in runner.message_hub.log_scalars.items():
        values, counts = buffer.data
        found[name] = dict(
            values=torch.tensor(values, dtype=torch.float64),
            counts=torch.tensor(counts, dtype=torch.float64),
            max_length=int(buffer.max_length),
        )
    return found


def _gradients(runner: Runner) -> dict:
    """Return the gradients that are being accumulated over iterations, by parameter; of a single process only."""
    if get_world_size() > 1:
        return {}
    if accumulation_steps(runner.optim_wrapper) == 1:
        return {}
    found = {name: parameter.grad for name, parameter in unwrapped(runner).named_parameters()}
    return {name: plain(gradient) for name, gradient in found.items() if gradient is not None}
