"""Seeing the data before training: the crops as the network gets them, and what the data set holds."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from rich.progress import track

from ..datasets import IGNITECropDataset, IGNITEDataset
from ..datasets.crop_stream import seeded
from ..datasets.prepared import image_path, open_array, read_index, select
from ..datasets.protocols import PARTS
from ..datasets.transforms.stain import estimate_stains
from ..errors import IgniteError
from ..files import check_outputs, check_writable, is_ours, result_file, visible_files
from ..labels import CLASSES, IGNORE, NUM_CLASSES, count_classes
from ..visualization import dataset_plots as plots
from ..visualization.contact_sheet import Crop, draw_contact_sheet
from ..visualization.dataset_page import Picture, dataset_page
from .checks import check_data

PAGE = 'dataset.html'
_FIGURES = ('class_pixels', 'drawn_classes', 'class_presence', 'roi_sizes', 'resolutions', 'stains')
_PER_SHEET = 12
_SHEET_BYTES = 9_000_000  # of JPEG in the page; base64 makes 12 MB of it
_WINDOW, _STEP, _STAIN_ROIS = 1024, 4, 4  # px of an ROI, every which pixel, and ROIs of a patient that show its stains
_Members = dict[str, list[dict]]


def browse(cfg: Config, out: str | Path, crops: int = 48, draws: int = 10_000, seed: int = 0) -> Path:
    """Show what a config trains on.

    Writes into ``out`` contact sheets ``crops_01.png``, ... (samples of the training data set after its whole pipeline),
    one PNG a figure, and ``dataset.html`` with all of them. What an earlier call left there is replaced, other files
    stay.

    Args:
        cfg: config whose training data set is an IGNITECropDataset or an IGNITEDataset.
        out: the folder.
        crops: how many to show.
        draws: crops of the stream whose labels are counted.
        seed: of the stream.

    Returns:
        The path of ``dataset.html``.

    Raises:
        IgniteError: data missing, a training data set of another kind or a pipeline without PackSegInputs, a negative
            number, a folder that cannot be written, or outputs that may not be written (see
            :func:`mmseg_ignite.files.check_outputs`).
    """
    out = Path(out)
    for name, value in (('--crops', crops), ('--draws', draws)):
        if value < 0:
            raise IgniteError(f'{name} is {value}; 0 or more was expected.')
    dataset = _build(cfg)
    names = [PAGE, *(f'{name}.png' for name in _FIGURES), *map(_sheet_name, range(-(-crops // _PER_SHEET)))]
    check_outputs(out / name for name in names)
    check_writable(out)
    index = read_index(dataset.data_root)
    members = {part: select(index, dataset.protocol, part, dataset.data_root) for part in PARTS}
    sheets = _write_sheets(out, dataset, Path(cfg.filename).stem, crops, seed)
    counted = _count_draws(dataset, seed, draws) if draws and isinstance(dataset, IGNITECropDataset) else None
    figures = _write_figures(out, dataset, members, counted)
    page = dataset_page(
        f'Training data of {Path(cfg.filename).stem}',
        _facts(cfg, dataset, members),
        members,
        counted,
        figures + sheets,
        _notes(dataset, counted) + _left_in_folder(len(sheets), crops),
    )
    _save(out / PAGE, lambda partial: partial.write_text(page, encoding='utf-8', errors='backslashreplace'))
    return out / PAGE


def _build(cfg: Config) -> IGNITEDataset:
    """The training data set of a config."""
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
        dataset.full_init()  # nothing is left to do unless the config sets lazy_init
    except (KeyError, TypeError, ValueError) as error:  # as registries and constructors complain of settings
        raise IgniteError(f'the training data set of {cfg.filename} cannot be built ({error}): mend it.') from error
    return dataset


def _save(path: Path, write: Callable[[Path], object]) -> None:
    try:
        with result_file(path) as partial:
            write(partial)
    except OSError as error:
        raise IgniteError(f'{path} cannot be written ({error.strerror or error}): choose another folder.') from error


def _new_ids(dataset: IGNITEDataset) -> np.ndarray:
    """(16,) the id that each train id has in the samples; 255 for a class that is not trained."""
    every = range(NUM_CLASSES)
    return np.array(every if dataset.label_map is None else [dataset.label_map[i] for i in every])


def _samples(dataset: IGNITEDataset, seed: int, count: int) -> Iterator[Crop]:
    """The first samples of a training, in the official train ids."""
    new_ids = _new_ids(dataset)
    train_ids = np.full(256, IGNORE, np.uint8)
    train_ids[new_ids[new_ids != IGNORE]] = np.flatnonzero(new_ids != IGNORE)
    order = np.random.default_rng(seed % 2**64).permutation(len(dataset))
    for n in range(count):
        if isinstance(dataset, IGNITECropDataset):
            source = dataset.stream.read(seed, n, with_image=False)
            roi, place = source['entry'], source['position']
            name, um_per_px, train_id = roi['name'], roi['um_per_px'] * place.zoom, place.train_id
            sample = dataset[seed, n]
        else:
            number = int(order[n % len(order)])
            roi = dataset.get_data_info(number)
            name, um_per_px, train_id = roi['roi'], roi['um_per_px'], None
            with seeded(seed, n):
                sample = dataset[number]
        image, labels, scale = _unpack(sample)
        yield Crop(image, train_ids[labels], name, um_per_px / scale, n, train_id)


def _unpack(sample: dict) -> tuple[np.ndarray, np.ndarray, float]:
    """Image (H, W, 3) uint8 RGB, labels (H, W) uint8, and by what the pipeline enlarged them."""
    image = sample.get('inputs') if isinstance(sample, dict) else None
    truth = sample['data_samples'].get('gt_sem_seg') if image is not None else None
    image = None if image is None else image.numpy()
    if truth is None or image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise IgniteError(
            'the training pipeline gives no uint8 BGR image with labels: end it with PackSegInputs, and leave '
            'normalisation to the data preprocessor.'
        )
    scale = np.prod(sample['data_samples'].metainfo.get('scale_factor') or (1.0, 1.0)) ** 0.5
    return np.ascontiguousarray(image[::-1].transpose(1, 2, 0)), truth.data[0].numpy().astype(np.uint8), float(scale)


def _write_sheets(out: Path, dataset: IGNITEDataset, config: str, count: int, seed: int) -> list[Picture]:
    """Write the contact sheets; the first ones, as far as the page has room, come back as JPEG."""
    total = -(-count // _PER_SHEET)
    for path in visible_files(out, ('.png',)):
        found = re.fullmatch(r'crops_(\d{2,})\.png', path.name)
        if found and int(found[1]) > total and is_ours(path):  # of an earlier call with more crops
            path.unlink()
    samples = track(_samples(dataset, seed, count), 'drawing crops', total=count)
    pictures, room, part = [], _SHEET_BYTES, []
    for crop in samples:
        part.append(crop)
        if len(part) < _PER_SHEET and crop.number < count - 1:
            continue
        name = _sheet_name(crop.number // _PER_SHEET)
        sheet = draw_contact_sheet(part, f'{config}: crops {part[0].number} to {crop.number} of seed {seed}')
        _save(out / name, sheet.save)
        jpeg = io.BytesIO()
        sheet.save(jpeg, 'jpeg', quality=85)
        room -= len(jpeg.getvalue())
        if room >= 0:
            pictures.append(_sheet_picture(name, part, total, jpeg.getvalue()))
        part = []
    return pictures


def _sheet_name(number: int) -> str:
    return f'crops_{number + 1:02}.png'


def _sheet_picture(name: str, crops: list[Crop], total: int, content: bytes) -> Picture:
    seen = np.unique(np.concatenate([np.unique(c.labels) for c in crops]))
    classes = ', '.join(CLASSES[i] for i in seen if i < NUM_CLASSES) or 'none'
    first, last = crops[0].number, crops[-1].number
    return Picture(
        f'Crops {first} to {last}',
        f'What the network will see, augmentation included; {name} of {total} in the folder is sharper. Colours lie over '
        'gray tissue; tissue in its own H&E colours is not annotated, near-white or light gray is Background.',
        f'Training crops {first} to {last}, each beside its labels. Classes on the sheet: {classes}.',
        content,
    )


def _count_draws(dataset: IGNITECropDataset, seed: int, draws: int) -> plots.Draws:
    """Count the labels of the first crops of the stream."""
    pixels, holding = np.zeros((2, NUM_CLASSES), np.int64)
    for n in track(range(draws), 'counting drawn crops'):
        counts = count_classes(dataset.stream.read(seed, n, with_image=False)['gt_seg_map'])
        pixels += counts
        holding += counts > 0
    new_ids = _new_ids(dataset)
    trained = new_ids != IGNORE
    found = np.zeros((3, NUM_CLASSES), np.int64)
    found[:2, trained] = np.stack([pixels, holding])[:, new_ids[trained]]
    found[2, trained] = plots.class_pixels(dataset.stream.rois)[trained]
    annotated = pixels.sum() / (draws * np.prod(dataset.stream.crop_size))
    return plots.Draws(draws, found[0], found[1], float(annotated), found[2])


def _patient_stains(root: str, members: _Members) -> list[plots.PatientStains]:
    """The stains of each patient, from the middles of a few ROIs."""
    by_patient: dict[str, list[dict]] = {}
    for roi in (r for rois in members.values() for r in rois):
        by_patient.setdefault(roi['patient'], []).append(roi)
    result = []
    for patient, rois in track(by_patient.items(), 'estimating stains'):
        chosen = rois[:: -(-len(rois) // _STAIN_ROIS)]
        pixels = np.concatenate([_middle(root, r['name']) for r in chosen])
        scanner, source = (str(rois[0].get(key) or 'unknown') for key in ('scanner', 'source'))
        result.append(plots.PatientStains(patient, scanner, source, estimate_stains(pixels)))
    return result


def _middle(root: str, name: str) -> np.ndarray:
    """Every fourth pixel of the middle 1024 x 1024 px of an ROI, (N, 1, 3) uint8 BGR."""
    array = open_array(image_path(root, name))
    (y0, y1), (x0, x1) = ((max(0, (s - _WINDOW) // 2), (s + _WINDOW + 1) // 2) for s in array.shape[:2])
    return array[y0:y1:_STEP, x0:x1:_STEP, ::-1].reshape(-1, 1, 3)


def _write_figures(out: Path, dataset: IGNITEDataset, members: _Members, counted: plots.Draws | None) -> list[Picture]:
    stream = getattr(dataset, 'stream', None)
    crop_size, um_range = (stream.crop_size, stream.um_per_px) if stream else (None, None)
    stains = _patient_stains(dataset.data_root, members)
    unclear = ', '.join(p.patient for p in stains if p.stains is None)
    figures = [
        ('class_pixels', 'Pixels of each class', plots.plot_class_pixels(members),
         'A step of the axis is a factor of ten: a class whose dot lies far left in train is hard to learn, one that is '
         'absent from val or test is not scored there.',
         'Dots: pixels of each class in each part, logarithmic; the table above has the numbers.'),
        ('class_presence', 'Classes by ROI', plots.plot_class_presence(members),
         'A row that is coloured in few columns is a class that few ROIs, and perhaps one patient, stand for.',
         'Matrix of classes and ROIs: which ROI holds which class; the table above has the numbers of ROIs and patients.'),
        ('roi_sizes', 'Sizes of the ROIs', plots.plot_roi_sizes(members, crop_size, um_range),
         'An ROI that does not reach beyond the box of the crop is smaller than a crop: tissue is mirrored there, without '
         'labels.' if stream else 'Each dot is an ROI.',
         'Scatter: height and width of each ROI.'),
        ('resolutions', 'Resolution of the ROIs', plots.plot_resolutions(members, um_range),
         'ROIs far from the others look larger or smaller to the network, unless crops are scaled to a common range.',
         'Histogram: um per px of the ROIs.'),
        ('stains', 'Stains of the patients', plots.plot_stains(stains),
         'Dots far apart are patients whose slides look different; a colour that stands apart is a difference of scanner or '
         'laboratory.' + (f' No two stains could be told apart in patient(s) {unclear}.' if unclear else ''),
         'Scatter: strength of haematoxylin and eosin of each patient, and the colours of both.'),
    ]  # fmt: skip
    if counted is not None:
        figures.insert(1, (
            'drawn_classes', 'Classes in the drawn crops', plots.plot_draws(counted),
            'The line from the white to the coloured dot is what class-aware drawing changes; the figures are the share in '
            'the data, in the crops, and their ratio.',
            'Shares of each class in data and crops; the table above has the numbers.'))  # fmt: skip
    else:
        if is_ours(out / 'drawn_classes.png'):  # of an earlier call
            (out / 'drawn_classes.png').unlink()
    pictures = []
    for name, title, figure, reading, alt in figures:
        path = out / f'{name}.png'
        _save(path, lambda partial, figure=figure: figure.savefig(partial, dpi=110))
        pictures.append(Picture(title, reading, alt, path.read_bytes()))
    return pictures


def _facts(cfg: Config, dataset: IGNITEDataset, members: _Members) -> dict[str, str]:
    settings = cfg.train_dataloader.dataset
    return {
        'config': str(cfg.filename),
        'data root': str(dataset.data_root),
        'split protocol': dataset.protocol,
        **{f'part {part}': plots.part_text(part, rois).split(': ')[1] for part, rois in members.items()},
        'training data set': f'{type(dataset).__name__}, part {dataset.split}',
        'crops': ', '.join(f'{k}={v}' for k, v in (settings.get('crops') or {}).items()) or 'left to the pipeline',
        'pipeline': ', '.join(str(t['type']) for t in settings.get('pipeline', [])),
    }


def _notes(dataset: IGNITEDataset, counted: plots.Draws | None) -> list[str]:
    notes = []
    left_out = [name for name, new in zip(CLASSES, _new_ids(dataset)) if new == IGNORE]
    if left_out:
        notes.append(f'Not trained in this config, and counted as not annotated: {", ".join(left_out)}.')
    if counted is not None:
        notes.append(
            f'Of the pixels of {counted.count:,} drawn crops, {plots.percent(counted.annotated)} are annotated; the rest '
            'is unannotated or lies beyond the ROI, and does not train.'
        )
    elif not isinstance(dataset, IGNITECropDataset):
        notes.append(
            "The training data set is an IGNITEDataset: the crops are its pipeline's own, so there is no stream of draws "
            'to count, and nobody chose the class around which a crop lies.'
        )
    return notes


def _left_in_folder(shown: int, crops: int) -> list[str]:
    total = -(-crops // _PER_SHEET)
    return [f'The page has room for {shown} of {total} contact sheets; the others are in the folder.'] * (shown < total)
