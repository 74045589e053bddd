"""Comparing the config of a resumed run with that of the run that wrote the checkpoint. No config text is executed."""

from collections.abc import Mapping

_NONE = 'has no effect on the weights'
_EFFECTS = (
    ('work_dir', None), ('resume', None), ('load_from', None), ('launcher', None), ('experiment_name', None),
    ('inherited_record', None),
    ('optim_wrapper.optimizer', 'is ignored: the optimizer continues as in the checkpoint'),
    ('optim_wrapper.paramwise_cfg', 'is ignored: the optimizer continues as in the checkpoint'),
    ('param_scheduler', 'is ignored: the schedule continues as in the checkpoint'),
    ('train_dataloader.num_workers', _NONE), ('train_dataloader.persistent_workers', _NONE),
    ('train_dataloader.prefetch_factor', _NONE), ('train_dataloader.pin_memory', _NONE),
    ('train_dataloader.timeout', _NONE),
    *((part, 'changes the training') for part in (
        'model', 'train_dataloader', 'train_cfg', 'train_pipeline', 'optim_wrapper', 'randomness', 'custom_hooks', 'crops',
        'protocol', 'data_root', 'auto_scale_lr', 'crop_size',
    )),
    *((part, 'changes which checkpoint is the best') for part in ('val_', 'default_hooks.checkpoint')),
    ('', _NONE),
)  # fmt: skip
"""(start of a dotted key, what a change of it does); the first that fits counts, None is not reported."""


def flat_settings(config: Mapping) -> dict[str, str]:
    """Return the settings of a config as {dotted key: Python text}, e.g. {'train_cfg.max_iters': '20000'}.

    Settings that a resumed run changes by itself are left out: paths, and initial weights.
    """
    found: dict[str, str] = {}
    _flatten(config, '', found)
    return {key: text for key, text in found.items() if _effect(key) is not None and 'init_cfg' not in key.split('.')}


def _flatten(value: object, key: str, found: dict[str, str]) -> None:
    inner: object = ()
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)
    items = list(inner)
    if not items:
        found[key] = repr(value)[:500]
    for name, child in items:
        _flatten(child, f'{key}.{name}' if key else str(name), found)


def _effect(key: str) -> str | None:
    return next(effect for start, effect in _EFFECTS if key.startswith(start))


def changed_settings(before: object, now: dict[str, str]) -> list[str]:
    """Return one line per changed setting, those that change the training first: 'KEY: BEFORE -> NOW (effect)'."""
    if not isinstance(before, dict):
        return []
    known = {str(key): str(text) for key, text in before.items()}
    changed = [key for key in sorted(known.keys() | now.keys()) if known.get(key) != now.get(key)]
    changed = [key for key in changed if _effect(key) is not None and 'init_cfg' not in key.split('.')]
    changed.sort(key=lambda key: _effect(key) == _NONE)
    return [
        f'{key[:80]}: {known.get(key, "not set")[:60]} -> {now.get(key, "not set")[:60]} ({_effect(key)})'
        for key in changed
    ]
