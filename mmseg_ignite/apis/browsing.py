"""Inspect the data before training: the crops that the network will see, and what the data set contains."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from ..datasets import IGNITECropDataset, IGNITEDataset
from ..datasets.prepared import PARTS, read_index, select
from ..errors import IgniteError
from ..files import check_outputs, check_writable, result_file, writing
from ..labels import CLASSES
from ..visualization.dataset_page import FIGURES, dataset_page, write_figures
from ..visualization.dataset_plots import SampledCrops, part_text, percent
from ..visualization.training_crops import count_crops, sheet_names, write_sheets
from .checks import check_data

PAGE = 'dataset.html'


def browse(cfg: Config, out: str | Path, crops: int = 48, draws: int = 10_000, seed: int = 0) -> Path:
    """Show the data that a config trains on.

    Writes into ``out`` contact sheets ``crops_01.png``, ... (samples of the training data set after its whole pipeline),
    one PNG per figure, and ``dataset.html`` with all of them; returns its path. Outputs of an earlier call are replaced;
    other files stay.

    Args:
        cfg: config whose training data set is an IGNITECropDataset or an IGNITEDataset.
        crops: number of crops to show.
        draws: number of crops of the stream whose labels are counted.
        seed: seed of the stream.

    Raises:
        IgniteError: data are missing, the training data set is of another kind, its pipeline has no PackSegInputs, a
            number is negative, the folder cannot be written, or an output exists and was not written by this package
            (see :func:`mmseg_ignite.files.check_outputs`).

    Example:
        >>> browse(load_config('segformer_mit-b0_1xb8-20k_ignite-512x512.py'), 'browse', crops=24)
        PosixPath('browse/dataset.html')
    """
    out = Path(out)
    for name, value in (('--crops', crops), ('--draws', draws)):
        if value < 0:
            raise IgniteError(f'{name} is {value}; 0 or more was expected.')
    dataset = _build(cfg)
    names = sheet_names(crops)
    check_outputs(out / name for name in [PAGE, *(f'{name}.png' for name in FIGURES), *names])
    check_writable(out)
    index = read_index(dataset.data_root)
    members = {part: select(index, dataset.protocol, part, dataset.data_root) for part in PARTS}
    config = Path(cfg.filename).stem
    sheets = write_sheets(out, dataset, config, crops, seed)
    sampled = count_crops(dataset, seed, draws) if draws and isinstance(dataset, IGNITECropDataset) else None
    figures, notes = write_figures(out, dataset, members, sampled), _notes(dataset, sampled)
    if len(sheets) < len(names):
        notes.append(f'The page shows {len(sheets)} of {len(names)} contact sheets; the others are in the folder.')
    content = dict(title=f'Training data of {config}', facts=_facts(cfg, dataset, members), notes=notes)
    page = dataset_page(members, sampled, pictures=figures + sheets, **content)
    with writing(out / PAGE), result_file(out / PAGE) as partial:
        partial.write_text(page, encoding='utf-8', errors='backslashreplace')
    return out / PAGE


def _build(cfg: Config) -> IGNITEDataset:
    settings = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    kind = str(settings.get('type')).split('.')[-1]
    if kind not in (IGNITECropDataset.__name__, IGNITEDataset.__name__) or not {'data_root', 'split'} <= set(settings):
        raise IgniteError(
            f'the training data set of {cfg.filename} is {kind}; an IGNITECropDataset or IGNITEDataset with data_root '
            'and split was expected: choose another config.'
        )
    check_data(cfg, 'train_dataloader')
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    try:
        dataset = DATASETS.build(settings)
        dataset.full_init()  # a no-op unless the config sets lazy_init
    except (KeyError, TypeError, ValueError) as error:  # as registries and constructors report wrong settings
        text = f'the training data set of {cfg.filename} cannot be built ({error}): correct its settings.'
        raise IgniteError(text) from error
    return dataset


def _facts(cfg: Config, dataset: IGNITEDataset, members: dict[str, list[dict]]) -> dict[str, str]:
    settings = cfg.train_dataloader.dataset
    return {
        'config': str(cfg.filename),
        'data root': str(dataset.data_root),
        'split protocol': dataset.protocol,
        **{f'part {part}': part_text(part, rois).split(': ')[1] for part, rois in members.items()},
        'training data set': f'{type(dataset).__name__}, part {dataset.split}',
        'crops': ', '.join(f'{k}={v}' for k, v in (settings.get('crops') or {}).items()) or 'chosen by the pipeline',
        'pipeline': ', '.join(str(t['type']) for t in settings.get('pipeline', [])),
    }


def _notes(dataset: IGNITEDataset, sampled: SampledCrops | None) -> list[str]:
    untrained = [name for name in CLASSES if name not in dataset.metainfo['classes']]
    notes = [f'Not trained in this config, and counted as not annotated: {", ".join(untrained)}.'] if untrained else []
    if sampled is not None:
        notes.append(
            f'Of the pixels of {sampled.count:,} sampled crops, {percent(sampled.annotated)} are annotated; the rest is '
            'unannotated or outside the ROI, and is ignored in training.'
        )
    elif not isinstance(dataset, IGNITECropDataset):
        notes.append(
            'The training data set is an IGNITEDataset: its pipeline chooses the crops, so there is no crop stream to '
            'count, and no class around which a crop was sampled.'
        )
    return notes
