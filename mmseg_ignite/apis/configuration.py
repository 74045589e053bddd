"""Read configs, resolve their shared settings, and build runners."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ..datasets.ignite import DATA_ROOT, PROTOCOL
from ..datasets.transforms.loading import transform_name as type_name
from ..engine.distributed import is_main_process, prepare_launch, process_errors
from ..engine.launchers import use_launcher
from ..engine.loader_errors import TIMEOUT, loader_errors
from ..engine.runner import TissueRunner
from ..errors import IgniteError
from ..files import full_disk_errors
from ..packaged import PREFIX, config_path, did_you_mean, packaged_configs
from .checks import LOADERS, check_config, config_name, our_datasets
from .dotted import find
from .options import apply_options


def _config_file(config: str | Path) -> Path:
    """Return the file of a config given by its path, or of a packaged config given by its name with or without PREFIX."""
    name, path = str(config), Path(config)
    if path.is_file():
        return path
    packaged = packaged_configs()
    if not name.startswith(PREFIX) and name not in (Path(known).name for known in packaged):
        siblings = [str(path.with_name(file.name)) for file in path.parent.glob('*.py')]
        hint = did_you_mean(name, [PREFIX + known for known in packaged] + siblings)
        raise IgniteError(f'{config} is not a file; a config (.py) was expected{hint}')
    found = config_path(name)
    if is_main_process():
        print(f'config: {found}')
    return Path(found)


def load_config(
    config: str | Path, options: dict | None = None, work_dir: str | None = None, launcher: str = 'none'
) -> Config:
    """Read a config, merge options into it and check it.

    Args:
        config: path of a config, or name of a packaged one, e.g. 'mmseg_ignite::segformer/NAME.py' or 'NAME.py'.
        options: {dotted key: value}, see :func:`.options.apply_options`. ``data_root``, ``protocol`` and ``crops``, as an
            option or at the top of the config, apply to all data sets, see :func:`resolved`.
        work_dir: defaults to the config's own, else ``work_dirs/CONFIG_NAME``.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        IgniteError: the config is missing, cannot be read or has a wrong setting (see :func:`.checks.check_config`), an
            option is wrong, the work dir is a file, or the launcher did not start this process.

    Example:
        >>> load_config('my_config.py', {'data_root': 'data/mine', 'crops.class_probability': 0.7})
    """
    use_launcher(launcher)
    path = _config_file(config)
    try:
        cfg = Config.fromfile(str(path))
    except Exception as error:  # a config is code: it may raise anything
        raise IgniteError(
            f'{path} cannot be read as a config ({type(error).__name__}: {error}): correct it.'
        ) from error
    if 'model' not in cfg:
        raise IgniteError(f'{path} defines no model: it is a base, choose a config that inherits from it.')
    _remove_repeated(cfg)
    try:
        apply_options(cfg, options or {})
    except (TypeError, KeyError, ValueError, IndexError, AttributeError, AssertionError) as error:
        raise IgniteError(f'the options do not fit {path} ({type(error).__name__}: {error}): correct them.') from error
    cfg = resolved(cfg)
    _check_reach(cfg, [key.removeprefix('+') for key in options or {}])
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / path.stem)
    if Path(cfg.work_dir).exists() and not Path(cfg.work_dir).is_dir():
        raise IgniteError(f'the work dir {cfg.work_dir} is a file: choose another with --work-dir.')
    cfg.launcher = launcher
    return cfg


def resolved(cfg: Config) -> Config:
    """Return a checked copy of a config whose data sets have all settings they require.

    - Copy top-level ``data_root`` and ``protocol`` to every data set of this package, and ``crops`` to the training data. A
      value that a data set sets itself is never overwritten.
    - Remove settings of the loaders that torch accepts only with workers from those without workers; set the timeout of the
      others to 600 s, so that a worker that hangs ends the run.

    Raises:
        IgniteError: see :func:`.checks.check_config`.
    """
    cfg = copy.deepcopy(cfg)
    for loader in filter(None, map(cfg.get, LOADERS)):
        if loader.get('num_workers', 0) == 0:
            loader.pop('prefetch_factor', None)
            loader.pop('timeout', None)
            loader['persistent_workers'] = False
        else:
            loader.setdefault('timeout', TIMEOUT)
    for dataset in our_datasets(cfg).values():
        dataset.setdefault('data_root', cfg.get('data_root', DATA_ROOT))
        dataset.setdefault('protocol', cfg.get('protocol', PROTOCOL))
        if type_name(dataset) == 'IGNITECropDataset':
            dataset['crops'] = {**copy.deepcopy(cfg.get('crops') or {}), **(dataset.get('crops') or {})}
    check_config(cfg)
    return cfg


def _remove_repeated(cfg: Config) -> None:
    """Remove shared settings that data sets repeat, as in a config that a tool wrote out, so that options reach all."""
    shared = dict(data_root=cfg.get('data_root', DATA_ROOT), protocol=cfg.get('protocol', PROTOCOL))
    for dataset in our_datasets(cfg).values():
        _remove_equal(dataset, shared)
        if isinstance(dataset.get('crops'), dict) and isinstance(cfg.get('crops'), dict):
            _remove_equal(dataset['crops'], cfg.crops)


def _remove_equal(settings: dict, shared: dict) -> None:
    for key in [key for key, value in shared.items() if key in settings and settings[key] == value]:
        del settings[key]


def _check_reach(cfg: Config, options: list[str]) -> None:
    """Raise IgniteError if an option of a shared setting does not reach a data set because it sets its own value."""
    loaders = our_datasets(cfg)
    for option in [option for option in options if option.split('.')[0] in ('data_root', 'protocol', 'crops')]:
        if not loaders:
            raise IgniteError(f'the option {option} reaches no data set, since none is of mmseg_ignite: remove it.')
        setting = '.'.join(
            option.split('.')[:2]
        )  # a data set overrides crops.um_per_px as a whole, not crops.um_per_px.0
        for own in (f'{loader}.dataset' for loader in loaders):
            found = find(cfg, f'{own}.{setting}', default=find(cfg, setting))
            if found != find(cfg, setting) and f'{own}.{option}' not in options:
                raise IgniteError(
                    f'the option {option} does not reach {own}, which sets {found!r} itself: use {own}.{option} for it.'
                )


def build_runner(cfg: Config, training: bool = False) -> Runner:
    """Build mmengine's runner of a config; for a training also its loops, optimizer and schedules.

    Raises:
        IgniteError: a part cannot be built, or a process of a distributed run does not answer.
    """
    with building(cfg), process_errors(cfg):
        prepare_launch(cfg)
        runner = TissueRunner.from_cfg(cfg)
        if training:  # in the order of Runner.train, which skips what is already built
            runner.train_loop  # noqa: B018  builds the loop and its data set
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
            runner.auto_scale_lr = None  # Runner.train would scale again
            if runner.param_schedulers is not None:
                runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
            runner.val_loop  # noqa: B018
        return runner


@contextmanager
def building(cfg: Config) -> Iterator[None]:
    """Convert the errors of registries and constructors into a sentence about the config.

    Raises:
        IgniteError: a part cannot be built.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise IgniteError(
            f'{config_name(cfg)} cannot be built ({type(error).__name__}: {reason}): correct the config.'
        ) from error


@contextmanager
def running(cfg: Config) -> Iterator[None]:
    """Convert the errors of loader workers, of other processes and of a full disk into a sentence.

    Args:
        cfg: config of a runner that :func:`build_runner` returned.

    Raises:
        IgniteError: see :func:`.loader_errors`, :func:`.process_errors` and :func:`.full_disk_errors`.
    """
    with full_disk_errors(cfg.work_dir), process_errors(cfg), loader_errors():
        yield
