"""Reading a config and checking what a user can get wrong in it before anything is built."""

import copy
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ..datasets.ignite import DATA_ROOT, PROTOCOL
from ..engine.distributed import is_main_process, prepare_launch
from ..engine.runner import QuietRunner
from ..errors import IgniteError
from ..packaged import PREFIX, config_path, did_you_mean, packaged_configs
from .checks import LOADERS, check_config, is_ours
from .options import apply_options


def _find(config: str | Path) -> Path:
    """The file of a config: a path, or a packaged config by its bare file name or as ``mmseg_ignite::segformer/NAME.py``."""
    name, path = str(config), Path(config)
    if path.is_file():
        return path
    if not name.startswith(PREFIX):
        packaged = packaged_configs()
        if name not in map(posixpath.basename, packaged):
            beside = [str(path.with_name(one.name)) for one in path.parent.glob('*.py')]
            hint = did_you_mean(name, [PREFIX + one for one in packaged] + beside)
            raise IgniteError(f'{config} is not a file; a config (.py) was expected{hint}')
    found = config_path(name)
    if is_main_process():
        print(f'config: {found}')
    return Path(found)


def load_config(
    config: str | Path, options: dict | None = None, work_dir: str | None = None, launcher: str = 'none'
) -> Config:
    """Read a config, merge options, choose the work dir: argument, then config, then ``work_dirs/CONFIG_NAME``.

    ``data_root``, ``protocol`` and ``crops`` at the top of a config, or among the options, reach its data sets, see
    :func:`resolved`; e.g. ``protocol = 'official'`` in a child config or
    ``--cfg-options data_root=data/mine crops.class_probability=0.7``.

    Raises:
        IgniteError: no such config, it cannot be read, or a setting in it is wrong, see :func:`.options.apply_options` and
            :func:`.checks.check_config`.
    """
    path = _find(config)
    try:
        cfg = Config.fromfile(str(path))
    except Exception as error:  # a config is code: it may raise anything
        raise IgniteError(
            f'{path} cannot be read as a config ({type(error).__name__}: {error}): correct it.'
        ) from error
    if 'model' not in cfg:
        raise IgniteError(f'{path} defines no model: it is a base, choose a config that inherits it.')
    try:
        apply_options(cfg, options or {})
    except (TypeError, KeyError, ValueError, IndexError, AssertionError) as error:
        raise IgniteError(f'the options do not fit {path} ({type(error).__name__}: {error}): correct them.') from error
    cfg = resolved(cfg, options)
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / path.stem)
    if Path(cfg.work_dir).exists() and not Path(cfg.work_dir).is_dir():
        raise IgniteError(f'the work dir {cfg.work_dir} is a file: choose another with --work-dir.')
    cfg.launcher = launcher
    return cfg


def resolved(cfg: Config, options: dict | None = None) -> Config:
    """Return a checked copy of a config whose data sets have all settings they need.

    - Top-level ``data_root`` and ``protocol`` are copied into every data set of this package, ``crops`` into the training
      data. A value that a data set sets itself is never overwritten.
    - Loaders without workers lose the settings that torch allows with workers only.

    Args:
        options: those of the command line, already merged; one of a shared setting must reach every data set.

    Raises:
        IgniteError: see :func:`.checks.check_config`, or an option reaches no data set, or one that sets another value.
    """
    cfg = copy.deepcopy(cfg)
    for name in LOADERS:
        loader = cfg.get(name)
        if loader and loader.get('num_workers', 0) == 0:
            loader.pop('prefetch_factor', None)
            loader['persistent_workers'] = False
        if loader and is_ours(dataset := loader.get('dataset')):
            dataset.setdefault('data_root', cfg.get('data_root', DATA_ROOT))
            dataset.setdefault('protocol', cfg.get('protocol', PROTOCOL))
            if str(dataset.get('type')).endswith('IGNITECropDataset'):
                dataset['crops'] = {**copy.deepcopy(cfg.get('crops') or {}), **(dataset.get('crops') or {})}
    _check_reach(cfg, [key.removeprefix('+') for key in options or {}])
    check_config(cfg)
    return cfg


def _check_reach(cfg: Config, options: list[str]) -> None:
    """Raise IgniteError if an option of a shared setting does not reach a data set."""
    datasets = {f'{name}.dataset': (cfg.get(name) or {}).get('dataset') for name in LOADERS}
    datasets = {name: dataset for name, dataset in datasets.items() if is_ours(dataset)}
    for option in options:
        key, *rest = option.split('.')
        if key not in ('data_root', 'protocol', 'crops'):
            continue
        if not datasets:
            raise IgniteError(
                f'the option {key} reaches no data set, since the config has none of mmseg_ignite: remove the option.'
            )
        for name, dataset in datasets.items():
            wanted, found = cfg[key], dataset.get(key)
            wanted, found = (
                (wanted, found) if not rest else (wanted[rest[0]], (found or {}).get(rest[0], wanted[rest[0]]))
            )
            if key in dataset and found != wanted and '.'.join([name, option]) not in options:
                raise IgniteError(
                    f'the option {option} does not reach {name}, which sets {found!r} itself: use the option '
                    f'{name}.{option} for it.'
                )


def build_runner(cfg: Config, training: bool = False) -> Runner:
    """mmengine's runner of a config; for a training with its loops, optimizer and schedules built.

    Raises:
        IgniteError: a part cannot be built.
    """
    prepare_launch(cfg)
    with building(cfg):
        runner = QuietRunner.from_cfg(cfg)
        if training:  # in the order of Runner.train, which skips what is built
            runner.train_loop  # noqa: B018  builds it, and the data set
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
            runner.auto_scale_lr = None  # once
            if runner.param_schedulers is not None:
                runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
            runner.val_loop  # noqa: B018
        return runner


@contextmanager
def building(cfg: Config) -> Iterator[None]:
    """Building parts of a config: what registries and constructors complain of becomes a sentence.

    Raises:
        IgniteError: a part cannot be built.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise IgniteError(
            f'{cfg.filename or "the config"} cannot be built ({type(error).__name__}: {reason}): correct the config.'
        ) from error
