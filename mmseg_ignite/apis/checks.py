"""What a user can get wrong in a config, found before anything is built."""

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder

from ..datasets.ignite import PROTOCOL
from ..datasets.prepared import check_context, read_index, select
from ..errors import IgniteError
from ..evaluation.metrics.tissue_metric import LOGGED, TissueMetric
from ..labels import NUM_CLASSES
from .options import find_type, suggest
from .values import LOADERS, check_values

_READ = (
    'model', *LOADERS, 'train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper', 'param_scheduler', 'val_evaluator',
    'test_evaluator', 'default_hooks', 'custom_hooks', 'visualizer', 'log_processor',
)  # fmt: skip
"""Parts of a config in which a ``type`` names a registered class."""
_FREE = ('metainfo', 'groupings', 'dist_cfg', 'meta')


def check_config(cfg: Config) -> None:
    """Check values, types, the parts of the model and the number of classes of a config.

    Raises:
        IgniteError: one of them is missing or wrong.
    """
    check_values(cfg)
    _check_texts(cfg)
    _check_model(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    for part in _READ:
        _check_types(cfg.get(part), part)
    check_classes(cfg)


def _get(cfg: Config, name: str) -> object:
    node: object = cfg
    for part in name.split('.'):
        node = node.get(part) if isinstance(node, (Config, Mapping)) else None
    return node


def _check_texts(cfg: Config) -> None:
    """Raise IgniteError if a data set of ours has something else than a text where it needs one."""
    for loader in LOADERS:
        dataset = _get(cfg, f'{loader}.dataset')
        for key in ('data_root', 'protocol', 'split') if is_ours(dataset) else ():
            if not isinstance(dataset.get(key, ''), (str, PathLike)):
                raise IgniteError(f'{key} of {loader} is {dataset[key]!r}; a text was expected: correct it.')


def _check_model(cfg: Config) -> None:
    """Raise IgniteError if the model is not a segmentor of a backbone, and of a head where its class needs one."""
    model = cfg.get('model')
    kind = find_type(_get(cfg, 'model.type'))
    head = ('decode_head',) if isinstance(kind, type) and issubclass(kind, EncoderDecoder) else ()
    missing = [name for name in ('type', 'backbone', *head) if not (isinstance(model, Mapping) and model.get(name))]
    if missing:
        raise IgniteError(
            f'{_name(cfg)} has no {_and(f"model.{name}" for name in missing)}: inherit a base with a whole model, e.g. '
            "_base_ = ['mmseg_ignite::segformer/segformer_mit-b0_1xb8-20k_ignite-512x512.py']."
        )


def _name(cfg: Config) -> str:
    return str(cfg.filename or 'the config')


def _and(names: Iterable[str]) -> str:
    *first, last = names
    return f'{", ".join(first)} and {last}' if first else last


def check_run(cfg: Config, task: str) -> None:
    """Check everything that a 'training' or a 'test' needs of a resolved config.

    Raises:
        IgniteError: see :func:`check_parts`, :func:`check_classes`, :func:`check_score_names` and :func:`check_data`.
    """
    loaders = ('test_dataloader',) if task == 'test' else ('train_dataloader', 'val_dataloader')
    check_parts(cfg, task)
    if task != 'test':
        check_score_names(cfg)
    check_classes(cfg, *loaders)
    check_data(cfg, *loaders)


def check_parts(cfg: Config, task: str) -> None:
    """Check what a 'training' or a 'test' needs of a config; a training needs all parts of a validation, or none.

    Raises:
        IgniteError: a part is missing, a data set has no pipeline, or two metrics would log scores of the same name.
    """
    validation = ('val_dataloader', 'val_evaluator', 'val_cfg')
    if task == 'test':
        needed = ('test_dataloader', 'test_evaluator', 'test_cfg')
    else:
        needed = ('train_dataloader', 'train_cfg', 'optim_wrapper')
        needed += validation if any(cfg.get(name) is not None for name in validation) else ()
    if missing := [name for name in needed if cfg.get(name) is None]:
        raise IgniteError(f'{_name(cfg)} has no {_and(missing)}, which a {task} needs: add what is missing.')
    for loader in LOADERS:
        if loader in needed:
            dataset = _get(cfg, f'{loader}.dataset')
            if dataset is None:
                raise IgniteError(f'{_name(cfg)} has no {loader}.dataset, which a {task} needs: add it.')
            if is_ours(dataset) and not dataset.get('pipeline'):
                raise IgniteError(
                    f'{loader}.dataset.pipeline of {_name(cfg)} is empty; transforms were expected, of which the last is '
                    'PackSegInputs: add them.'
                )
    _check_evaluator(cfg, 'test_evaluator' if task == 'test' else 'val_evaluator')


def _check_evaluator(cfg: Config, name: str) -> None:
    """Raise IgniteError if two metrics of an evaluator would log scores of the same name, which mmengine refuses late."""
    seen: dict[object, str] = {}
    for number, evaluator in enumerate(_names(cfg.get(name) or [])):
        kind = find_type(evaluator.get('type')) if isinstance(evaluator, Mapping) else None
        if not (isinstance(kind, type) and issubclass(kind, (IoUMetric, TissueMetric))):
            continue
        prefix = evaluator.get('prefix') or kind.default_prefix
        if prefix in seen:
            raise IgniteError(
                f'{seen[prefix]} and {kind.__name__} of the {name} would both log mIoU: give one of them a prefix, e.g. '
                f'{name}.{number}.prefix=other.'
            )
        seen[prefix] = kind.__name__


def _check_types(node: object, place: str) -> None:
    """Raise IgniteError if a ``type`` of a config is registered nowhere."""
    if isinstance(node, (list, tuple)):
        for number, item in enumerate(node):
            _check_types(item, f'{place}.{number}')
    if not isinstance(node, Mapping):
        return
    name = node.get('type')
    if isinstance(name, str) and find_type(name) is None:
        raise IgniteError(
            f'{place}.type is {name!r}, which is not registered in mmseg{suggest(name, _registered())}. Correct it, or add '
            'the module that defines it to custom_imports.'
        )
    for key, value in node.items():
        if key not in _FREE:
            _check_types(value, f'{place}.{key}')


def _registered() -> set[str]:
    from .options import REGISTRIES

    names: set[str] = set()
    for registry in REGISTRIES:
        while registry is not None:
            names.update(registry.module_dict)
            registry = registry.parent
    return names


def check_classes(cfg: Config, *loaders: str) -> None:
    """Raise IgniteError if the network has another number of classes than the data of these loaders.

    Without loaders, those data sets count that name their classes, else all.
    """
    datasets = {name: (cfg.get(name) or {}).get('dataset') for name in loaders or LOADERS}
    datasets = {name: dataset for name, dataset in datasets.items() if is_ours(dataset)}
    named = {name: dataset for name, dataset in datasets.items() if (dataset.get('metainfo') or {}).get('classes')}
    for name, dataset in (datasets if loaders else named or datasets).items():
        classes = (dataset.get('metainfo') or {}).get('classes')
        expected = NUM_CLASSES if classes is None else len(classes)
        for place, head in heads(cfg):
            found = head.get('num_classes', expected)
            if found == expected:
                continue
            unannotated = classes is None and found == NUM_CLASSES + 1
            hint = ' (Unannotated is not a class here: those pixels are ignored)' if unannotated else ''
            raise IgniteError(
                f'model.{place}.num_classes is {found}, but the data set of {name} has {expected} classes{hint}: set it to '
                f'{expected}, or name the classes in metainfo of all data sets.'
            )


def heads(cfg: Config) -> Iterator[tuple[str, Mapping]]:
    """Yield the decode and auxiliary heads of a config with their names."""
    for name in ('decode_head', 'auxiliary_head'):
        head = cfg.model.get(name)
        for number, one in enumerate(head if isinstance(head, (list, tuple)) else [head]):
            if isinstance(one, Mapping):
                yield (f'{name}.{number}' if isinstance(head, (list, tuple)) else name), one


def check_score_names(cfg: Config) -> None:
    """Raise IgniteError if ``save_best`` or an early stopping names a score that the validation does not give."""
    scores = _validation_scores(cfg)
    if scores is None:
        return
    wanted = [
        ('default_hooks.checkpoint.save_best', name) for name in _names(_get(cfg, 'default_hooks.checkpoint.save_best'))
    ]
    for number, hook in enumerate(cfg.get('custom_hooks') or ()):
        if str(hook.get('type')).split('.')[-1] == 'EarlyStoppingHook':
            wanted.append((f'custom_hooks.{number}.monitor', hook.get('monitor')))
    for place, name in wanted:
        if name not in (*scores, 'auto', None):
            raise IgniteError(
                f'{place} is {name!r}, but the validation gives {", ".join(scores)}{suggest(str(name), scores)}. Correct it.'
            )


def _names(value: object) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _validation_scores(cfg: Config) -> list[str] | None:
    """Names of the scores of a validation; None if not all evaluators are ours."""
    evaluators = cfg.get('val_evaluator') or []
    scores: list[str] = []
    for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        if str(evaluator.get('type')).split('.')[-1] != 'TissueMetric':
            return None
        prefix = evaluator.get('prefix')
        scores += [f'{prefix}/{name}' if prefix else name for name in LOGGED]
    for hook in cfg.get('custom_hooks') or ():
        if str(hook.get('type')).split('.')[-1] == 'ScoreSmoothingHook':
            scores.append(f'{hook.get("score", "mIoU")}_smoothed')
    return scores


def is_ours(dataset: Mapping | None) -> bool:
    """Whether the settings of a data set are of one of this package."""
    kind = dataset.get('type') if isinstance(dataset, Mapping) else None
    return getattr(kind, '__name__', str(kind)).split('.')[-1] in ('IGNITEDataset', 'IGNITECropDataset')


def selected(dataset: Mapping) -> list[dict]:
    """The index entries of the ROIs of a data set of this package."""
    root = dataset['data_root']
    return select(read_index(root), dataset.get('protocol', PROTOCOL), dataset['split'], root)


def check_data(cfg: Config, *loaders: str) -> None:
    """Raise IgniteError if a data set that a run needs is missing, holds no ROI, or lacks the context that it is to use."""
    for loader in loaders:
        dataset = (cfg.get(loader) or {}).get('dataset')
        if not is_ours(dataset):
            continue
        root, protocol, rois = dataset.data_root, dataset.get('protocol', PROTOCOL), selected(dataset)
        if not rois:
            raise IgniteError(f'{root} has no ROI in the {dataset.split} part of {protocol}: prepare more ROIs.')
        if dataset.get('use_context'):
            check_context(rois, root)
