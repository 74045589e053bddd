"""Write the figures of a prepared data set and of its training crops, each with an explanation for the page."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from mmengine.fileio import load
from rich.progress import track

from ..datasets import IGNITEDataset
from ..datasets.prepared import image_path, open_array
from ..datasets.transforms.stain import estimate_stains
from ..files import is_ours
from . import dataset_plots as plots
from .dataset_page import Picture
from .writers import save_result

_CAPTIONS = load(Path(__file__).with_name('captions.yml'))
FIGURES = tuple(_CAPTIONS)
"""Stems of the files, in the order of the page."""
_STAIN_WINDOW, _STAIN_STEP, _STAIN_ROIS = 1024, 4, 4  # px in the middle of an ROI, every n-th pixel, ROIs per patient


def write_figures(
    out: Path, dataset: IGNITEDataset, members: dict[str, list[dict]], crops: plots.SampledCrops | None
) -> list[Picture]:
    """Write a PNG per figure; without ``crops``, remove the figure of the sampled crops that an earlier call wrote."""
    stream = getattr(dataset, 'stream', None)
    crop_size, um_range = (stream.crop_size, stream.um_per_px) if stream else (None, None)
    stains = _patient_stains(dataset.data_root, members)
    figures = dict(
        class_pixels=plots.plot_class_pixels(members),
        drawn_classes=plots.plot_sampled_crops(crops) if crops else None,
        class_presence=plots.plot_class_presence(members),
        roi_sizes=plots.plot_roi_sizes(members, crop_size, um_range),
        resolutions=plots.plot_resolutions(members, um_range),
        stains=plots.plot_stains(stains),
    )
    notes = {}
    if stream:
        notes['roi_sizes'] = (
            ' An ROI that does not extend beyond the crop box is smaller than a crop; the rest of the crop is filled with '
            'mirrored tissue without labels.'
        )
    if unclear := ', '.join(p.patient for p in stains if p.stains is None):
        notes['stains'] = f' Haematoxylin and eosin could not be separated for patient(s) {unclear}.'
    pictures = []
    for name, caption in _CAPTIONS.items():
        path = out / f'{name}.png'
        if figure := figures[name]:
            save_result(path, lambda partial, figure=figure: figure.savefig(partial, dpi=110))
            text = caption['text'] + notes.get(name, '')
            pictures.append(Picture(caption['title'], text, caption['alt'], path.read_bytes()))
        elif is_ours(path):
            path.unlink()
    return pictures


def _patient_stains(root: str, members: dict[str, list[dict]]) -> list[plots.PatientStains]:
    """Estimate the stains of each patient from the centres of a few ROIs."""
    by_patient = defaultdict(list)
    for roi in (r for rois in members.values() for r in rois):
        by_patient[roi['patient']].append(roi)
    result = []
    for patient, rois in track(by_patient.items(), 'estimating stains'):
        pixels = np.concatenate([_centre(root, r['name']) for r in rois[:: -(-len(rois) // _STAIN_ROIS)]])
        scanner, source = (str(rois[0].get(key) or 'unknown') for key in ('scanner', 'source'))
        result.append(plots.PatientStains(patient, scanner, source, estimate_stains(pixels)))
    return result


def _centre(root: str, name: str) -> np.ndarray:
    """Read every fourth pixel of the central 1024 x 1024 px of an ROI, (N, 1, 3) uint8 BGR."""
    array = open_array(image_path(root, name))
    (y0, y1), (x0, x1) = ((max(0, (s - _STAIN_WINDOW) // 2), (s + _STAIN_WINDOW + 1) // 2) for s in array.shape[:2])
    return array[y0:y1:_STAIN_STEP, x0:x1:_STAIN_STEP, ::-1].reshape(-1, 1, 3)
