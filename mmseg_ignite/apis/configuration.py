"""Reading a config and checking what a user can get wrong in it before anything is built."""

import copy
import posixpath
from pathlib import Path

from mmengine.config import Config

import mmseg_ignite

from ..engine.distributed import is_main_process
from ..errors import IgniteError
from ..packaged import PREFIX, config_path, did_you_mean, packaged_configs
from ..preparation.store import check_context, read_index, select

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_SHARED = ('data_root', 'protocol', 'crops')
"""Settings that a config states once and its data sets take over."""


def _find(config: 'str | Path') -> Path:
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
    config: 'str | Path', options: 'dict | None' = None, work_dir: 'str | None' = None, launcher: str = 'none'
) -> Config:
    """Read a config, merge options, choose the work dir: argument, then config, then ``work_dirs/CONFIG_NAME``.

    ``data_root``, ``protocol`` and ``crops`` at the top of a config, or among the options, reach its data sets, e.g.
    ``protocol = 'official'`` in a child config or ``--cfg-options data_root=data/mine crops.class_probability=0.7``.

    Raises:
        IgniteError: no such config, or it cannot be read.
    """
    path = _find(config)
    try:
        cfg = Config.fromfile(str(path))
        if options:
            cfg.merge_from_dict(options)
    except Exception as error:  # a config is code: it may raise anything
        raise IgniteError(f'{path} cannot be read as a config ({type(error).__name__}: {error}): mend it.') from error
    _share(cfg, {option.split('.')[0] for option in options or {}})
    if 'model' not in cfg:
        raise IgniteError(f'{path} defines no model: it is a base, choose a config that inherits it.')
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / path.stem)
    if Path(cfg.work_dir).exists() and not Path(cfg.work_dir).is_dir():
        raise IgniteError(f'the work dir {cfg.work_dir} is a file: choose another with --work-dir.')
    cfg.launcher = launcher
    return cfg


def _share(cfg: Config, asked: 'set[str]') -> None:
    """Let top-level settings reach the data sets: those asked for by option, and those of a config that changed the base's.

    When a child config sets ``protocol``, the base has put its own into the data sets already. A data set that states
    something else than the base keeps it.
    """
    roots = (Path(mmseg_ignite.__file__).parents[1], Path(mmseg_ignite.__file__).parent / '.mim')
    bases = [root / 'configs' / '_base_' / 'datasets' / 'ignite.py' for root in roots]
    defaults = Config.fromfile(str(next(base for base in bases if base.is_file())))
    for loader in _LOADERS:
        dataset = (cfg.get(loader) or {}).get('dataset')
        if not is_ours(dataset):
            continue
        for key in _SHARED:
            if (
                key in cfg
                and (key in asked or dataset.get(key) == defaults[key])
                and (key != 'crops' or key in dataset)
            ):
                dataset[key] = copy.deepcopy(cfg[key])


def is_ours(dataset: 'dict | None') -> bool:
    """Whether the settings of a data set are of one of this package."""
    kinds = ('IGNITEDataset', 'IGNITECropDataset')
    return dataset is not None and str(dataset.get('type')).split('.')[-1] in kinds


def selected(dataset: dict) -> 'list[dict]':
    """The index entries of the ROIs of a data set of this package."""
    root = dataset['data_root']
    return select(read_index(root), dataset.get('protocol', 'patient-8-1-1'), dataset['split'], root)


def check_data(cfg: Config, *loaders: str) -> None:
    """Raise IgniteError if a data set that a run needs is not there, holds no ROI, or lacks the context that it is to use."""
    for loader in loaders:
        dataset = (cfg.get(loader) or {}).get('dataset')
        if not is_ours(dataset):
            continue
        root, protocol, rois = dataset.data_root, dataset.get('protocol', 'patient-8-1-1'), selected(dataset)
        if not rois:
            raise IgniteError(f'{root} has no ROI in the {dataset.split} part of {protocol}: prepare more ROIs.')
        if dataset.get('use_context'):
            check_context(rois, root)
