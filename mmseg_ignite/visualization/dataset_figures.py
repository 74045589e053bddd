"""Write the figures of a prepared data set and of its training crops, each with an explanation for the page."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.progress import track

from ..datasets import IGNITEDataset
from ..datasets.prepared import image_path, open_array
from ..datasets.transforms.stain import estimate_stains
from ..files import is_ours
from . import dataset_plots as plots
from .dataset_page import Picture
from .writers import save_result

FIGURES = ('class_pixels', 'drawn_classes', 'class_presence', 'roi_sizes', 'resolutions', 'stains')
"""Stems of the files, in the order of the page."""
_STAIN_WINDOW, _STAIN_STEP, _STAIN_ROIS = 1024, 4, 4  # px in the middle of an ROI, every n-th pixel, ROIs per patient


def write_figures(
    out: Path, dataset: IGNITEDataset, members: dict[str, list[dict]], crops: plots.SampledCrops | None
) -> list[Picture]:
    """Write a PNG per figure; without ``crops``, remove the figure of the sampled crops that an earlier call wrote."""
    stream = getattr(dataset, 'stream', None)
    crop_size, um_range = (stream.crop_size, stream.um_per_px) if stream else (None, None)
    stains = _patient_stains(dataset.data_root, members)
    unclear = ', '.join(p.patient for p in stains if p.stains is None)
    figures = dict(
        class_pixels=('Pixels of each class', plots.plot_class_pixels(members),
            'Each step of the axis is a factor of ten. A class whose dot is far to the left in train is hard to learn; a '
            'class that is absent from val or test is not scored there.',
            'Dots: pixels of each class in each part, logarithmic; the table above has the numbers.'),
        drawn_classes=crops and ('Classes in the sampled crops', plots.plot_sampled_crops(crops),
            'The line from the white to the coloured dot is the effect of class-aware sampling; the numbers are the share '
            'in the data, the share in the crops, and their ratio.',
            'Shares of each class in data and crops; the table above has the numbers.'),
        class_presence=('Classes by ROI', plots.plot_class_presence(members),
            'A row with colour in few columns is a class that few ROIs, and perhaps one patient, represent.',
            'Matrix of classes and ROIs: which ROI contains which class; the table above has the numbers of ROIs and '
            'patients.'),
        roi_sizes=('Sizes of the ROIs', plots.plot_roi_sizes(members, crop_size, um_range),
            'ROIs inside the box are smaller than a crop; there, the tissue is mirrored without labels.'
            if stream else 'Each dot is an ROI.',
            'Scatter plot: height and width of each ROI.'),
        resolutions=('Resolution of the ROIs', plots.plot_resolutions(members, um_range),
            'ROIs far from the others look larger or smaller to the network, unless crops are scaled to a common range.',
            'Histogram: um per px of the ROIs.'),
        stains=('Stains of the patients', plots.plot_stains(stains),
            'Patients whose dots are far apart have slides that look different; if a colour is separate from the others, '
            'the difference is one of scanner or laboratory.'
            + (f' Haematoxylin and eosin could not be separated for patient(s) {unclear}.' if unclear else ''),
            'Scatter plot: strength of haematoxylin and eosin of each patient, and the colours of both.'),
    )  # fmt: skip
    pictures = []
    for name in FIGURES:
        path = out / f'{name}.png'
        if figures[name]:
            title, figure, text, alt = figures[name]
            save_result(path, lambda partial, figure=figure: figure.savefig(partial, dpi=110))
            pictures.append(Picture(title, text, alt, path.read_bytes()))
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
