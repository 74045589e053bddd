"""Resuming a training: everything in a checkpoint is checked before anything of the run changes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from ...errors import IgniteError
from ...files import printable
from .. import compatibility
from ..devices import stored_like
from ..parameter_groups import with_merged_groups
from ..training_record import TrainingRecord
from .mmengine_objects import History
from .opening import fitting_weights
from .random_state import set_random_state
from .saving import FORMAT, STATE, early_stopping_hooks, unwrapped
from .settings import changed_settings, flat_settings

_MAX_ITERATION = 10**9
_MAX_LOGGED = 50_000_000
_PATHS = ('last_ckpt', 'keep_ckpt_ids')
_SHOWN = 12
_POSITIVE = ('lr', 'initial_lr', 'eps', 'weight_decay', 'momentum')


@dataclass
class Resumed:
    """What a run has taken over from a checkpoint.

    Attributes:
        path: the checkpoint.
        iteration: number of iterations done.
        random_state: state of this process's random number generators; None if unknown.
        validation_pending: whether the validation after the last iteration is still to be done.
        notes: sentences for the user on what makes the run differ from an uninterrupted one.
    """

    path: Path
    iteration: int
    random_state: dict | None = None
    validation_pending: bool = False
    notes: list[str] = field(default_factory=list)

    def restore_random_state(self) -> None:
        """Set the random number generators of this process to the state of the checkpoint."""
        if self.random_state is not None:
            set_random_state(self.random_state)


def resume(runner: Runner, checkpoint: dict, path: str | Path) -> Resumed:
    """Load a checkpoint into a runner whose loop, optimizer and schedules are built.

    Raises:
        IgniteError: weights, optimizer, schedules or counters are missing, of another form, or not finite; the runner is then
            unchanged.
    """
    path, checkpoint = Path(path), with_merged_groups(checkpoint, runner)
    iteration, epoch = _position(checkpoint, path, runner)
    weights, averaged = _weights(checkpoint, path, runner)
    optimizer = _optimizer(checkpoint.get('optimizer'), runner.optim_wrapper, path, own=STATE in checkpoint)
    schedules = _schedules(checkpoint, path, runner)
    state = checkpoint.get(STATE) if isinstance(checkpoint.get(STATE), dict) else {}
    history = _history(checkpoint, state, path)
    information = _information(checkpoint, path)
    gradients = _gradients(state, path, runner)
    resumed = Resumed(path, iteration, validation_pending=state.get('validation_pending') is True)

    unwrapped(runner).load_state_dict(weights)
    for hook, values in averaged:
        hook.ema_model.load_state_dict(values)
    runner.optim_wrapper.load_state_dict(optimizer)
    _store_like_parameters(runner.optim_wrapper)
    for scheduler, values in schedules:
        scheduler.load_state_dict(values)
    for name, gradient in gradients.items():
        parameter = unwrapped(runner).get_parameter(name)
        parameter.grad = stored_like(gradient, parameter)
    compatibility.set_position(runner, iteration, epoch)
    _resume_messages(runner, information, history)
    _resume_stopping(runner, state)
    resumed.random_state = _random_state(state, resumed, runner)
    resumed.notes += _notes(runner, checkpoint, state)
    return resumed


def _refusal(
    path: Path, what: str, remedy: str = 'use the config of this training, or another checkpoint'
) -> IgniteError:
    return IgniteError(f'{printable(path)} cannot be resumed from: {what}; nothing was loaded: {remedy}.')


def _position(checkpoint: dict, path: Path, runner: Runner) -> tuple[int, int]:
    meta = checkpoint.get('meta') or {}
    found = {key: meta.get(key) for key in ('iter', 'epoch')}
    for key, value in found.items():
        if type(value) is not int or not 0 <= value < _MAX_ITERATION:
            raise _refusal(path, f'its {key} is {str(value)[:40]}, and a number from 0 was expected')
    last = runner.train_loop.max_iters
    if found['iter'] > last:
        raise _refusal(
            path,
            f'it was written after {found["iter"]} iterations, but the config ends after {last}',
            'raise train_cfg.max_iters',
        )
    return found['iter'], found['epoch']


def _weights(checkpoint: dict, path: Path, runner: Runner) -> tuple[dict, list]:
    """Return the weights to train on, and the averaged ones of each EMAHook.

    With an EMAHook, mmengine stores the averages as ``state_dict`` and the trained weights as ``ema_state_dict``.
    """
    own = unwrapped(runner).state_dict()
    weights = fitting_weights(checkpoint.get('state_dict', {}), own, path)
    averages = checkpoint.get('ema_state_dict')
    hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    if averages is None:
        return weights, []
    if not isinstance(averages, dict):
        raise _refusal(path, f'its ema_state_dict is a {type(averages).__name__}')
    trained = {k[7:]: v for k, v in averages.items() if isinstance(k, str) and k.startswith('module.')}
    both = fitting_weights({**weights, **trained}, own, path)
    values = {**averages, **{f'module.{key}': weights[key] for key in trained if key in weights}}
    for hook in hooks:
        expected = hook.ema_model.state_dict()
        if values.keys() != expected.keys() or any(values[k].shape != v.shape for k, v in expected.items()):
            raise _refusal(path, 'its averaged weights are those of another model')
    for name, value in both.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise _refusal(path, f'the weights {name} are NaN or infinite', 'use an earlier checkpoint')
    return both, [(hook, values) for hook in hooks]


def _optimizer(found: object, wrapper: object, path: Path, own: bool) -> dict:
    """Return the state of an optimizer, or of several by name, if it has the form that this run's optimizer needs."""
    if isinstance(wrapper, OptimWrapperDict):
        if not isinstance(found, dict) or found.keys() != wrapper.keys():
            raise _refusal(path, 'it has other optimizers')
        return {name: _optimizer(found[name], part, path, own) for name, part in wrapper.items()}
    if not isinstance(found, dict):
        raise _refusal(
            path, 'it has no optimizer state', 'start a new training from its weights with --cfg-options load_from=FILE'
        )
    groups, states = found.get('param_groups'), found.get('state')
    expected = wrapper.optimizer.param_groups
    if not isinstance(groups, list) or not isinstance(states, dict) or len(groups) != len(expected):
        raise _refusal(path, 'its optimizer has other parameter groups')
    for group, known in zip(groups, expected):
        _check_group(group, known, wrapper.optimizer.defaults, path)
    parameters = [parameter for group in expected for parameter in group['params']]
    numbers = [number for group in groups for number in group['params']]
    if numbers != list(range(len(parameters))) or not set(states) <= set(numbers):
        raise _refusal(path, 'its optimizer has other parameters')
    for number, state in states.items():
        _check_parameter_state(state, parameters[number], path)
    required = [n for n, parameter in enumerate(parameters) if parameter.requires_grad]
    missing = [n for n in required if n not in states]
    if missing and not own and (states or 'betas' in wrapper.optimizer.defaults):
        raise _refusal(path, f'its optimizer lacks {len(missing)} of {len(required)} parameters')
    if len({frozenset(state) for state in states.values()}) > 1:
        raise _refusal(path, 'its optimizer has different values for different parameters')
    _check_scaler(found.get('loss_scaler'), path)
    settings = found.get('base_param_settings')
    if settings is not None:
        known = getattr(wrapper, 'base_param_settings', None) or {}
        if not isinstance(settings, dict) or not all(_same_form(v, known.get(k)) for k, v in settings.items()):
            raise _refusal(path, 'the base settings of its optimizer have another form')
    return found


def _store_like_parameters(wrapper: object) -> None:
    parts = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    for parameter, state in (pair for part in parts for pair in part.optimizer.state.items()):
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[key] = stored_like(value, parameter)


def _check_group(group: object, known: dict, defaults: dict, path: Path) -> None:
    params = group.get('params') if isinstance(group, dict) else None
    if not isinstance(params, list) or len(params) != len(known['params']):
        raise _refusal(path, 'a parameter group of its optimizer has another size')
    for key, value in defaults.items():
        if key not in group and value is not None and not isinstance(value, bool):  # flags are new in some versions
            raise _refusal(path, f'a parameter group of its optimizer has no {key}')
    for key, value in group.items():
        negative = key in _POSITIVE and _is_number(value) and value < 0
        if key != 'params' and (negative or not _same_form(value, known.get(key))):
            raise _refusal(path, f'{str(key)[:40]} of its optimizer is {str(value)[:40]}')


def _check_parameter_state(state: object, parameter: torch.Tensor, path: Path) -> None:
    if not isinstance(state, dict):
        raise _refusal(path, f'the state of a parameter in its optimizer is a {type(state).__name__}')
    for key, value in state.items():
        valid = value is None or isinstance(value, (bool, int, float)) and math.isfinite(value)
        if isinstance(value, torch.Tensor):
            number = value.numel() == 1 and key == 'step'
            valid = (number or value.shape == parameter.shape) and bool(torch.isfinite(value).all())
            valid = valid and value.is_floating_point()
        if valid and key == 'step':
            valid = value is not None and 0 <= float(value) < _MAX_ITERATION
        elif valid and str(key).endswith('_sq') and isinstance(value, torch.Tensor):  # mean squares
            valid = not bool((value < 0).any())
        if not valid:
            what = tuple(value.shape) if isinstance(value, torch.Tensor) else str(value)[:40]
            raise _refusal(
                path, f'{str(key)[:40]} of its optimizer is not finite or of shape {what}, not {tuple(parameter.shape)}'
            )


def _check_scaler(scaler: object, path: Path) -> None:
    if scaler is None or scaler == {}:
        return
    names = ('scale', 'growth_factor', 'backoff_factor', 'growth_interval', '_growth_tracker')
    values = [scaler.get(name) for name in names] if isinstance(scaler, dict) else [None]
    if not all(_is_number(value) and value >= 0 for value in values) or not values[0] > 0:
        raise _refusal(path, 'the state of its loss scaler is not valid')


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _same_form(found: object, own: object) -> bool:
    """Return whether a setting has the type of this run's, with finite numbers and lists of the same length."""
    if own is None or isinstance(own, bool) or isinstance(found, bool):
        return found is None or isinstance(found, bool) or isinstance(found, (int, float)) and math.isfinite(found)
    if isinstance(own, (list, tuple)):
        return isinstance(found, (list, tuple)) and len(found) == len(own) and all(map(_same_form, found, own))
    if isinstance(own, dict):
        return isinstance(found, dict) and found.keys() == own.keys() and all(_same_form(found[k], own[k]) for k in own)
    if isinstance(own, torch.Tensor):
        return isinstance(found, torch.Tensor) and found.shape == own.shape and bool(torch.isfinite(found).all())
    if isinstance(own, Real):
        return (
            _is_number(found) or isinstance(found, torch.Tensor) and found.numel() == 1 and bool(found.isfinite().all())
        )
    return type(found) is type(own) and found == own


def _schedules(checkpoint: dict, path: Path, runner: Runner) -> list[tuple]:
    """Return (scheduler, its state) for all schedules of the run."""
    own, found = runner.param_schedulers, checkpoint.get('param_schedulers')
    if not own and not found:
        return []
    if isinstance(own, Mapping):
        same = isinstance(found, dict) and found.keys() == own.keys()
        pairs = [(list(own[name]), found[name]) for name in own] if same else [(own, None)]
    else:
        pairs = [(list(own or ()), found)]
    states = []
    for schedulers, values in pairs:
        if not isinstance(values, list) or len(values) != len(schedulers):
            count = len(values) if isinstance(values, list) else 'no'
            raise _refusal(path, f'it has {count} learning-rate schedules, the config has {len(own or ())}')
        for scheduler, value in zip(schedulers, values):
            form = {key: inner for key, inner in scheduler.state_dict().items() if key in (value or ())}
            counted = isinstance(value, dict) and type(value.get('last_step')) is int and value['last_step'] >= -1
            if not counted or value.keys() - scheduler.state_dict().keys() or not _same_form(value, form):
                raise _refusal(path, f'the state of its schedule {type(scheduler).__name__} has another form')
            states.append((scheduler, value))
    return states


def _history(checkpoint: dict, state: dict, path: Path) -> dict[str, HistoryBuffer]:
    """Build the history of logged numbers from checked tensors; numbers of mmengine's own checkpoints are converted."""
    hub = checkpoint.get('message_hub')
    old = hub.get('log_scalars') if isinstance(hub, dict) else None
    found: dict = dict(old) if isinstance(old, dict) else {}
    found.update(state.get('history') or {} if isinstance(state.get('history'), dict) else {})
    buffers, total = {}, 0
    for name, value in found.items():
        if isinstance(value, History):
            value = dict(values=value.values, counts=value.counts, max_length=value.max_length)
        parts = [value.get(key) for key in ('values', 'counts')] if isinstance(value, dict) else []
        valid = len(parts) == 2 and all(isinstance(t, torch.Tensor) and t.ndim == 1 for t in parts)
        length = value.get('max_length') if valid else None
        if not valid or len(parts[0]) != len(parts[1]) or type(length) is not int or length < 1:
            raise _refusal(path, f'the log history of {str(name)[:40]} is not valid')
        total += len(parts[0])
        if total > _MAX_LOGGED:  # many names may share one tensor in the file, but not in memory
            raise _refusal(path, f'its log history has more than {_MAX_LOGGED:,} values')
        values, counts = (tensor.double().numpy() for tensor in parts)
        buffers[str(name)] = HistoryBuffer(values, counts, length)
    return buffers


def _gradients(state: dict, path: Path, runner: Runner) -> dict[str, torch.Tensor]:
    found = state.get('gradients') or {}
    own = dict(unwrapped(runner).named_parameters())
    for name, gradient in found.items() if isinstance(found, dict) else ():
        if name not in own or not isinstance(gradient, torch.Tensor) or gradient.shape != own[name].shape:
            raise _refusal(path, f'its accumulated gradient of {str(name)[:60]} does not fit')
    return found


def _information(checkpoint: dict, path: Path) -> dict:
    """Return the numbers and texts that hooks keep; paths are not taken from a file."""
    hub = checkpoint.get('message_hub')
    found = hub.get('runtime_info') if isinstance(hub, dict) else None
    found = {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    for key, value in found.items():
        wrong = key.startswith('best_score') and not _is_number(value)
        if wrong or key.startswith('best_ckpt') and not isinstance(value, (str, type(None))):
            raise _refusal(path, f'its {key[:40]} is {str(value)[:40]}')
    known = (bool, int, float, str, list, tuple)
    return {key: value for key, value in found.items() if key not in _PATHS and isinstance(value, known)}


def _resume_messages(runner: Runner, information: dict, history: dict[str, HistoryBuffer]) -> None:
    for name, buffer in history.items():
        runner.message_hub.log_scalars[name] = buffer
        compatibility.mark_resumed(runner.message_hub, name)
    for key, value in information.items():
        runner.message_hub.update_info(key, value)


def _resume_stopping(runner: Runner, state: dict) -> None:
    """Take over the counters of the early-stopping hooks."""
    found = state.get('early_stopping')
    hooks = early_stopping_hooks(runner)
    if isinstance(found, list) and len(found) == len(hooks):
        for hook, values in zip(hooks, found):
            if isinstance(values, dict) and type(values.get('wait_count')) is int:
                hook.wait_count, hook.best_score = (
                    values['wait_count'],
                    float(values.get('best_score', hook.best_score)),
                )
    if state.get('stop_training') is True and hooks:
        runner.train_loop.stop_training = True


def _random_state(state: dict, resumed: Resumed, runner: Runner) -> dict | None:
    """Return the random state of this process; note why the resumed run is not exact."""
    states, processes = state.get('random'), state.get('processes')
    if state.get('format') != FORMAT or not isinstance(states, list):
        resumed.notes.append(
            'the checkpoint was written without the state of the random number generators, so the resumed run is not equal '
            'to an uninterrupted one'
        )
        return None
    now = get_world_size(), getattr(runner.train_dataloader, 'batch_size', None), get_device()
    before = processes, state.get('batch_size'), state.get('device')
    for what, old, new in zip(('processes', 'images per process', 'device'), before, now):
        if old != new:
            resumed.notes.append(
                f'{what}: {old} before, {new} now, so the resumed run is not equal to an uninterrupted one'
            )
    rank = get_rank()
    return states[rank] if processes == now[0] and rank < len(states) else None


def _notes(runner: Runner, checkpoint: dict, state: dict) -> list[str]:
    """Return what else has changed since the checkpoint was written."""
    notes = []
    if (version := state.get('torch')) not in (None, str(torch.__version__)):
        notes.append(f'torch: {str(version)[:20]} before, {torch.__version__} now: results may differ by rounding')
    before = TrainingRecord.of_meta(checkpoint.get('meta'))
    if before and before.data_sha256:
        now = TrainingRecord.of_datasets(runner.train_dataloader.dataset)
        if now.data_sha256 and now.data_sha256 != before.data_sha256:
            notes.append('the prepared data set is not the one of the checkpoint: this changes the training')
    changed = changed_settings(state.get('settings'), flat_settings(runner.cfg.to_dict()))
    notes += changed[:_SHOWN]
    if len(changed) > _SHOWN:
        notes.append(f'and {len(changed) - _SHOWN} more settings')
    return notes
