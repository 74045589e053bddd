"""Find the mistakes in a config before anything is built."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from os import PathLike

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder

from ..datasets.ignite import PROTOCOL
from ..datasets.prepared import check_context, read_index, select
from ..datasets.transforms.loading import transform_name as type_name
from ..datasets.verification import SAMPLE_SECONDS, check_sample, has_digests
from ..engine.distributed import is_main_process
from ..engine.launchers import use_launcher
from ..errors import IgniteError
from ..evaluation.metrics.tissue_metric import LOGGED, TissueMetric
from ..labels import NUM_CLASSES
from .dotted import each, find, walk
from .options import REGISTRIES, RUNNER_ARGUMENTS, find_type, part_class, suggestion
from .values import LOADERS, check_values

_FREE = {'metainfo', 'groupings', 'dist_cfg', 'meta'}
"""Settings inside which a ``type`` is not a registered class."""
_VALIDATION = ('val_dataloader', 'val_evaluator', 'val_cfg')
_NEEDED = {
    'training': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'test': ('test_dataloader', 'test_evaluator', 'test_cfg'),
}


def check_config(cfg: Config) -> None:
    """Check the values, types, parts of the model and number of classes of a config.

    Raises:
        IgniteError: one of them is missing or wrong.
    """
    check_values(cfg)
    for loader, dataset in our_datasets(cfg).items():
        for key in ('data_root', 'protocol', 'split'):
            if not isinstance(dataset.get(key, ''), (str, PathLike)):
                raise IgniteError(f'{key} of {loader} is {dataset[key]!r}; text was expected: correct it.')
    _check_model(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    _check_types(cfg)
    _check_statistics(cfg)
    check_classes(cfg)


def _check_model(cfg: Config) -> None:
    """Raise IgniteError if the model lacks its type, its backbone, or the head that an EncoderDecoder requires."""
    needed = ['model.type', 'model.backbone']
    needed += ['model.decode_head'] if issubclass(part_class(cfg.get('model')), EncoderDecoder) else []
    if missing := [key for key in needed if not find(cfg, key)]:
        raise IgniteError(
            f'{config_name(cfg)} has no {" and ".join(missing)}: inherit a base with a complete model, e.g. '
            "_base_ = ['mmseg_ignite::segformer/segformer_mit-b0_1xb8-20k_ignite-512x512.py']."
        )


def _check_statistics(cfg: Config) -> None:
    """Raise IgniteError if images are not normalised as the encoder expects, where its class knows that."""
    backbone = cfg.model.backbone
    check = getattr(part_class(backbone), 'check_inputs', None)
    if check is not None:
        check(backbone, cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {})


def config_name(cfg: Config) -> str:
    """Return the file of a config, as the subject of a sentence."""
    return str(cfg.filename or 'the config')


def _check_types(cfg: Config) -> None:
    """Raise IgniteError if a ``type`` is not registered."""
    for key, name in walk({part: cfg.get(part) for part in RUNNER_ARGUMENTS}):
        *parents, last = key.split('.')
        if last != 'type' or not isinstance(name, str) or _FREE & set(parents) or find_type(name) is not None:
            continue
        registries = {*REGISTRIES, *(registry.parent for registry in REGISTRIES)} - {None}
        hint = suggestion(get_close_matches(name, {n for registry in registries for n in registry.module_dict}, 1))
        raise IgniteError(
            f'{key} is {name!r}, which is not registered in mmseg{hint} Correct it, or add its module to custom_imports.'
        )


def check_run(cfg: Config, task: str) -> None:
    """Check everything that a 'training' or a 'test' requires of a resolved config.

    The main process also compares some arrays of the data with their checksums, for about a second.

    Raises:
        IgniteError: see :func:`check_parts`, :func:`check_classes`, :func:`check_score_names`, :func:`check_data`,
            :func:`mmseg_ignite.datasets.verification.check_sample` and :func:`.use_launcher`.
    """
    use_launcher(cfg.get('launcher', 'none'))
    loaders = ('test_dataloader',) if task == 'test' else ('train_dataloader', 'val_dataloader')
    check_parts(cfg, task)
    if task != 'test':
        check_score_names(cfg)
    check_classes(cfg, *loaders)
    used = check_data(cfg, *loaders)
    if is_main_process():
        _check_arrays(used)


def _check_arrays(used: list[tuple[str, list[dict], bool]]) -> None:
    """Check a sample of the arrays of data sets, see :func:`check_data`; warn if one has no checksums."""
    for root, rois, use_context in used:
        check_sample(root, rois, use_context, SAMPLE_SECONDS / len(used))
    for root in {root for root, rois, _ in used if not any(map(has_digests, rois))}:
        warnings.warn(f'{root} cannot be verified (its index has no SHA-256 of the arrays): prepare the data again.')


def check_parts(cfg: Config, task: str) -> None:
    """Check that a config has the parts of a 'training' or a 'test'; a training has a complete validation or none.

    Raises:
        IgniteError: a part is missing, a data set has no pipeline, or two metrics would log scores of the same name.
    """
    needed = _NEEDED[task]
    if task == 'training' and any(cfg.get(part) is not None for part in _VALIDATION):
        needed += _VALIDATION
    loaders = [part for part in needed if part in LOADERS]
    missing = [part for part in needed if cfg.get(part) is None]
    if missing := missing or [f'{part}.dataset' for part in loaders if cfg[part].get('dataset') is None]:
        raise IgniteError(
            f'{config_name(cfg)} has no {" and ".join(missing)}, which a {task} needs: add what is missing.'
        )
    for loader, dataset in our_datasets(cfg, loaders).items():
        if not dataset.get('pipeline'):
            raise IgniteError(
                f'{loader}.dataset.pipeline of {config_name(cfg)} is empty: add transforms that end with PackSegInputs.'
            )
    _check_evaluator(cfg, 'test_evaluator' if task == 'test' else 'val_evaluator')


def _check_evaluator(cfg: Config, name: str) -> None:
    """Raise IgniteError if two metrics would log scores of the same name; mmengine does so after the first evaluation."""
    seen: dict[object, str] = {}
    for key, metric in each(cfg, name):
        kind = part_class(metric)
        if not issubclass(kind, (IoUMetric, TissueMetric)):
            continue
        prefix = metric.get('prefix') or kind.default_prefix
        if prefix in seen:
            raise IgniteError(
                f'{seen[prefix]} and {kind.__name__} of {name} would both log mIoU: give one of them a prefix, e.g. '
                f'{key}.prefix=other.'
            )
        seen[prefix] = kind.__name__


def check_classes(cfg: Config, *loaders: str) -> None:
    """Raise IgniteError if a head has another number of classes than the data sets of these loaders.

    Without loaders, check the data sets that name their classes in ``metainfo``; if there are none, all of them.
    """
    datasets = our_datasets(cfg, loaders or LOADERS)
    classes = {loader: (dataset.get('metainfo') or {}).get('classes') for loader, dataset in datasets.items()}
    if not loaders and any(classes.values()):
        classes = {loader: names for loader, names in classes.items() if names}
    for loader, names in classes.items():
        expected = NUM_CLASSES if names is None else len(names)
        for key, head in heads(cfg):
            found = head.get('num_classes', expected)
            if found == expected:
                continue
            unannotated = names is None and found == NUM_CLASSES + 1
            hint = ' (Unannotated is not a class: its pixels are ignored)' if unannotated else ''
            raise IgniteError(
                f'{key}.num_classes is {found}, but the data set of {loader} has {expected} classes{hint}: set it to '
                f'{expected}, or name the classes in metainfo of all data sets.'
            )


def heads(cfg: Config) -> Iterator[tuple[str, Mapping]]:
    """Yield the decode and auxiliary heads of a config with their keys, e.g. 'model.auxiliary_head.0'."""
    for name in ('decode_head', 'auxiliary_head'):
        yield from ((key, head) for key, head in each(cfg, f'model.{name}') if isinstance(head, Mapping))


def check_score_names(cfg: Config) -> None:
    """Raise IgniteError if ``save_best`` or an EarlyStoppingHook names a score that the validation does not compute."""
    scores = _validation_scores(cfg)
    if scores is None:
        return
    stopping = [(key, hook) for key, hook in each(cfg, 'custom_hooks') if type_name(hook) == 'EarlyStoppingHook']
    monitors = [(f'{key}.monitor', hook.get('monitor')) for key, hook in stopping]
    for key, name in [*each(cfg, 'default_hooks.checkpoint.save_best'), *monitors]:
        if name not in (*scores, 'auto', None):
            computed, hint = ', '.join(scores) or 'no score', suggestion(get_close_matches(str(name), scores, 1))
            raise IgniteError(f'{key} is {name!r}, but the validation computes {computed}{hint} Correct it.')


def _validation_scores(cfg: Config) -> list[str] | None:
    """Return the names of the validation scores; None if a metric is not a TissueMetric."""
    scores: list[str] = []
    for metric in [metric for _, metric in each(cfg, 'val_evaluator') if metric]:
        if type_name(metric) != 'TissueMetric':
            return None
        prefix = metric.get('prefix')
        scores += [f'{prefix}/{name}' if prefix else name for name in LOGGED]
    smoothing = [hook for _, hook in each(cfg, 'custom_hooks') if type_name(hook) == 'ScoreSmoothingHook']
    return scores + [f'{hook.get("score", "mIoU")}_smoothed' for hook in smoothing]


def is_ours(dataset: Mapping | None) -> bool:
    """Return whether the settings of a data set are those of a class of this package."""
    return type_name(dataset) in ('IGNITEDataset', 'IGNITECropDataset')


def our_datasets(cfg: Config, loaders: Iterable[str] = LOADERS) -> dict[str, Mapping]:
    """Return {loader: settings of its data set} for the data sets of this package."""
    datasets = {loader: find(cfg, f'{loader}.dataset') for loader in loaders}
    return {loader: dataset for loader, dataset in datasets.items() if is_ours(dataset)}


def selected(dataset: Mapping) -> list[dict]:
    """Return the index entries of the ROIs that a data set of this package selects."""
    root = dataset['data_root']
    return select(read_index(root), dataset.get('protocol', PROTOCOL), dataset['split'], root)


def check_data(cfg: Config, *loaders: str) -> list[tuple[str, list[dict], bool]]:
    """Check that the data sets of the loaders exist, have an ROI, and have the context that they use.

    Returns:
        for each data set of this package: its folder, the index entries of its ROIs, and whether it reads context.

    Raises:
        IgniteError: one of them is missing.
    """
    used = []
    for dataset in our_datasets(cfg, loaders).values():
        root, rois = dataset.data_root, selected(dataset)
        if not rois:
            protocol = dataset.get('protocol', PROTOCOL)
            raise IgniteError(f'{root} has no ROI in the {dataset.split} part of {protocol}: prepare more ROIs.')
        if dataset.get('use_context'):
            check_context(rois, root)
        crops = dataset.get('crops') or {}
        used.append((str(root), rois, bool(dataset.get('use_context') or crops.get('use_context'))))
    return used
