"""Reading a config and checking what a user can get wrong in it before anything is built."""

import copy
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ..datasets.ignite import DATA_ROOT, PROTOCOL
from ..engine.distributed import is_main_process
from ..engine.runner import QuietRunner
from ..errors import IgniteError
from ..packaged import PREFIX, config_path, default_crops, did_you_mean, packaged_configs
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
    """A checked copy of a config whose data sets have all that they need; the config itself stays as it is.

    - Top-level ``data_root`` and ``protocol`` reach every data set of this package that does not set its own. As options of
      a command they reach all of them, but for one with an option of its own (``val_dataloader.dataset.protocol=...``).
    - Top-level ``crops`` reach the training data: each setting in which the data set does not differ from
      ``configs/_base_/datasets/ignite.py``.
    - Loaders without workers get no settings that torch allows with workers only.

    Raises:
        IgniteError: see :func:`.checks.check_config`.
    """
    cfg, options = copy.deepcopy(cfg), {key.removeprefix('+') for key in options or {}}
    for name in LOADERS:
        loader = cfg.get(name)
        if loader and loader.get('num_workers', 0) == 0:
            loader.pop('prefetch_factor', None)
            loader['persistent_workers'] = False
        if loader and is_ours(dataset := loader.get('dataset')):
            for key, default in (('data_root', DATA_ROOT), ('protocol', PROTOCOL)):
                if key not in dataset or (key in options and f'{name}.dataset.{key}' not in options):
                    dataset[key] = cfg.get(key, default)
            _share_crops(cfg, dataset)
    shared = {option.split('.')[0] for option in options} & {'data_root', 'protocol', 'crops'}
    if shared and not any(is_ours((cfg.get(name) or {}).get('dataset')) for name in LOADERS):
        raise IgniteError(
            f'the option {min(shared)} reaches no data set, since the config has none of mmseg_ignite: leave it out.'
        )
    cfg.settings_are_shared = True
    check_config(cfg)
    return cfg


def _share_crops(cfg: Config, dataset: dict) -> None:
    if 'crops' in cfg and ('crops' in dataset or str(dataset.get('type')).endswith('IGNITECropDataset')):
        own, default = dataset.get('crops') or {}, default_crops()
        own = {key: value for key, value in own.items() if key not in default or value != default[key]}
        dataset['crops'] = {**copy.deepcopy(cfg.crops), **own}


def build_runner(cfg: Config, training: bool = False) -> Runner:
    """mmengine's runner of a config; for a training with its loops, optimizer and schedules built.

    Raises:
        IgniteError: a part cannot be built.
    """
    with building(cfg):
        runner = QuietRunner.from_cfg(cfg)
        if training:  # in the order of Runner.train, which passes over what is built
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
