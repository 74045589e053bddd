"""Parameter groups of the optimizer: one for all parameters with the same settings."""

from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapperDict
from mmengine.runner import Runner
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MergedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with one parameter group for all parameters whose settings are equal.

    mmengine makes a group for each parameter (177 for B0), and an optimizer launches its kernels for each group. Arguments
    and settings are the same, and so are the updates. A checkpoint with a group for each parameter can be resumed from.
    """

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: object) -> None:
        """Add the parameters of a module to the groups; those of the whole model are merged."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if not prefix:
            params[:] = _merged(params)


def _merged(groups: list[dict]) -> list[dict]:
    found: dict[str, dict] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key != 'params'}
        merged = found.setdefault(repr(sorted(settings.items())), {'params': [], **settings})
        merged['params'].extend(group['params'])
    return list(found.values())


def with_merged_groups(checkpoint: dict, runner: Runner) -> dict:
    """Return a checkpoint whose optimizer has a group for each parameter in the form of the groups of a run.

    Its optimizer and schedules are converted. A checkpoint of another form is returned as it is, to be checked as any other.
    """
    wrapper, found = runner.optim_wrapper, checkpoint.get('optimizer')
    if isinstance(wrapper, OptimWrapperDict) or not isinstance(found, dict):
        return checkpoint
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    order = {id(p): number for number, p in enumerate(p for p in model.parameters() if p.requires_grad)}
    numbers = [[order.get(id(p), -1) for p in group['params']] for group in wrapper.optimizer.param_groups]
    optimizer = _merged_state(found, numbers)
    if optimizer is None:
        return checkpoint
    schedules, count = checkpoint.get('param_schedulers'), len(order)
    if isinstance(schedules, list):
        schedules = [_merged_schedule(s, numbers, count) if isinstance(s, dict) else s for s in schedules]
    return {**checkpoint, 'optimizer': optimizer, **({'param_schedulers': schedules} if schedules else {})}


def _merged_state(state: dict, numbers: list[list[int]]) -> dict | None:
    """Return the state of an optimizer with merged groups; None if it has another form or its groups differ in settings.

    Args:
        state: ``state_dict`` of an optimizer.
        numbers: for each merged group, its parameters by their number in the model.
    """
    groups, values = state.get('param_groups'), state.get('state')
    order = [number for members in numbers for number in members]
    if not isinstance(groups, list) or not isinstance(values, dict) or len(numbers) == len(groups):
        return None
    single = all(isinstance(group, dict) and group.get('params') == [n] for n, group in enumerate(groups))
    if not single or sorted(order) != list(range(len(groups))):
        return None
    merged, first = [], 0
    for members in numbers:
        settings = [{key: value for key, value in groups[n].items() if key != 'params'} for n in members]
        if any(repr(other) != repr(settings[0]) for other in settings):
            return None
        merged.append({**settings[0], 'params': list(range(first, first + len(members)))})
        first += len(members)
    values = {new: values[old] for new, old in enumerate(order) if old in values}
    return {**state, 'param_groups': merged, 'state': values}


def _merged_schedule(state: dict, numbers: list[list[int]], count: int) -> dict:
    """Return the state of a schedule with a value for each merged group instead of each of ``count`` parameters.

    Behind the values of the groups mmengine keeps that of the base settings.
    """
    return {
        key: [value[members[0]] for members in numbers] + value[count:]
        if isinstance(value, list) and len(value) in (count, count + 1)
        else value
        for key, value in state.items()
    }
