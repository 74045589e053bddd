"""Inspect the data before training: the crops that the network will see, and what the data set contains."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from ..datasets import IGNITECropDataset, IGNITEDataset
from ..datasets.prepared import PARTS, read_index, select
from ..errors import IgniteError
from ..files import check_outputs, check_writable
from ..labels import CLASSES, IGNORE
from ..visualization.dataset_figures import FIGURES, write_figures
from ..visualization.dataset_page import dataset_page
from ..visualization.dataset_plots import SampledCrops, part_text, percent
from ..visualization.training_crops import count_crops, sheet_names, trained_ids, write_sheets
from ..visualization.writers import save_result
from .checks import check_data

PAGE = 'dataset.html'


def browse(cfg: Config, out: str | Path, crops: int = 48, draws: int = 10_000, seed: int = 0) -> Path:
    """Show the data that a config trains on.

    Writes into ``out`` contact sheets ``crops_01.png``, ... (samples of the training data set after its whole pipeline),
    one PNG per figure, and ``dataset.html`` with all of them. Outputs of an earlier call are replaced; other files stay.

    Args:
        cfg: config whose training data set is an IGNITECropDataset or an IGNITEDataset.
        out: output folder.
        crops: number of crops to show.
        draws: number of crops of the stream whose labels are counted.
        seed: seed of the stream.

    Returns:
        The path of ``dataset.html``.

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
    check_outputs(out / name for name in [PAGE, *(f'{name}.png' for name in FIGURES), *sheet_names(crops)])
    check_writable(out)
    index = read_index(dataset.data_root)
    members = {part: select(index, dataset.protocol, part, dataset.data_root) for part in PARTS}
    sheets = write_sheets(out, dataset, Path(cfg.filename).stem, crops, seed)
    sampled = count_crops(dataset, seed, draws) if draws and isinstance(dataset, IGNITECropDataset) else None
    figures, notes = write_figures(out, dataset, members, sampled), _notes(dataset, sampled)
    if len(sheets) < len(sheet_names(crops)):
        notes.append(
            f'The page shows {len(sheets)} of {len(sheet_names(crops))} contact sheets; the others are in the folder.'
        )
    title = f'Training data of {Path(cfg.filename).stem}'
    page = dataset_page(title, _facts(cfg, dataset, members), members, sampled, figures + sheets, notes)
    save_result(out / PAGE, lambda partial: partial.write_text(page, encoding='utf-8', errors='backslashreplace'))
    return out / PAGE


def _build(cfg: Config) -> IGNITEDataset:
    """Build the training data set of a config."""
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
        raise IgniteError(
            f'the training data set of {cfg.filename} cannot be built ({error}): correct its settings.'
        ) from error
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
    untrained = [name for name, new in zip(CLASSES, trained_ids(dataset)) if new == IGNORE]
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
