"""Sample the crops of a training data set, count their classes, and write them as contact sheets."""

import io
import re
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from ..datasets import IGNITECropDataset, IGNITEDataset
from ..datasets.crop_stream import seeded
from ..datasets.deferred import changed_image
from ..errors import IgniteError
from ..files import is_ours, result_file, visible_files, writing
from ..labels import CLASSES, NUM_CLASSES, count_classes, release_ids
from .contact_sheet import Crop, classes_in, draw_contact_sheet
from .dataset_page import Picture
from .dataset_plots import SampledCrops, class_pixels

_PER_SHEET = 12
_SHEET_TEXT = (
    'What the network will see, augmentation included; {} of {} in the folder is sharper. Class colours are painted over '
    'gray tissue. Tissue in its own H&E colours is not annotated; near-white or light gray is Background.'
)
_PAGE_BYTES = 9_000_000  # of JPEG sheets on the page; base64 makes 12 MB of it


def sheet_names(crops: int) -> list[str]:
    """Return the file names of the contact sheets for a number of crops."""
    return [f'crops_{number:02}.png' for number in range(1, -(-crops // _PER_SHEET) + 1)]


def sample_crops(dataset: IGNITEDataset, seed: int) -> Iterator[Crop]:
    """Yield the samples of a training, after the whole pipeline, with the train ids of the release.

    Raises:
        IgniteError: the pipeline does not end with PackSegInputs, or normalises the image.
    """
    train_ids = release_ids(dataset.metainfo['classes'])
    order = np.random.default_rng(seed % 2**64).permutation(len(dataset))
    for n in count():
        if isinstance(dataset, IGNITECropDataset):
            source = dataset.stream.read(seed, n, with_image=False)
            roi, position = source['entry'], source['position']
            name, train_id = roi['name'], position.train_id
            um_per_px = (roi['um_per_px'] or np.nan) * position.zoom
            sample = dataset[seed, n]
        else:
            number = int(order[n % len(order)])
            roi = dataset.get_data_info(number)
            name, um_per_px, train_id = roi['roi'], roi['um_per_px'] or np.nan, None
            with seeded(seed, n):
                sample = dataset[number]
        image, labels, scale = _unpack(sample)
        yield Crop(image, train_ids[labels], name, um_per_px / scale, n, train_id)


def _unpack(sample: dict) -> tuple[np.ndarray, np.ndarray, float]:
    """Return image (H, W, 3) uint8 RGB, labels (H, W) uint8, and the factor by which the pipeline enlarged them."""
    image = sample['inputs'] if isinstance(sample, dict) and 'inputs' in sample else torch.empty(0)
    truth = sample['data_samples'].get('gt_sem_seg') if image.numel() else None
    if truth is None or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise IgniteError(
            'the training pipeline does not return a uint8 BGR image with labels: end it with PackSegInputs, and leave '
            'normalisation to the data preprocessor.'
        )
    scale = np.prod(sample['data_samples'].metainfo.get('scale_factor') or (1.0, 1.0)) ** 0.5
    return np.ascontiguousarray(changed_image(sample)[..., ::-1]), truth.data[0].numpy().astype(np.uint8), float(scale)


def count_crops(dataset: IGNITECropDataset, seed: int, total: int) -> SampledCrops:
    """Count the labels of the first crops of the stream."""
    pixels, holding = np.zeros((2, NUM_CLASSES), np.int64)
    for n in track(range(total), 'counting crops'):
        counts = count_classes(dataset.stream.read(seed, n, with_image=False)['gt_seg_map'])
        pixels += counts
        holding += counts > 0
    annotated = pixels.sum() / (total * np.prod(dataset.stream.crop_size))
    ids = [CLASSES.index(name) for name in dataset.metainfo['classes']]
    found = np.zeros((3, NUM_CLASSES), np.int64)
    found[:, ids] = pixels[: len(ids)], holding[: len(ids)], class_pixels(dataset.stream.rois)[ids]
    return SampledCrops(total, found[0], found[1], float(annotated), found[2])


def write_sheets(out: Path, dataset: IGNITEDataset, config: str, total: int, seed: int) -> list[Picture]:
    """Write contact sheets of the first crops; return as many of them, as JPEG, as fit on the page."""
    names = sheet_names(total)
    for path in visible_files(out, ('.png',)):
        if re.fullmatch(r'crops_\d{2,}\.png', path.name) and path.name not in names and is_ours(path):
            path.unlink()  # left by an earlier call with more crops
    samples, pictures, budget = islice(sample_crops(dataset, seed), total), [], _PAGE_BYTES
    for name in track(names, 'drawing contact sheets'):
        crops = list(islice(samples, _PER_SHEET))
        sheet = draw_contact_sheet(crops, f'{config}: crops {crops[0].number} to {crops[-1].number} of seed {seed}')
        with writing(out / name), result_file(out / name) as partial:
            sheet.save(partial)
        jpeg = io.BytesIO()
        sheet.save(jpeg, 'jpeg', quality=85)
        budget -= len(jpeg.getvalue())
        if budget >= 0:
            title = f'Crops {crops[0].number} to {crops[-1].number}'
            classes = ', '.join(CLASSES[i] for i in classes_in(crops) if i < NUM_CLASSES) or 'none'
            alt = f'{title} of the training, each beside its labels. Classes: {classes}.'
            pictures.append(Picture(title, _SHEET_TEXT.format(name, len(names)), alt, jpeg.getvalue()))
    return pictures
