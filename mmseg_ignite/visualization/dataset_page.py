"""A self-contained HTML page about a data set: facts, table of classes, figures and other pictures."""

from base64 import b64encode
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from mmengine.fileio import load
from rich.progress import track

from ..datasets import IGNITEDataset
from ..datasets.prepared import image_path, open_array
from ..datasets.transforms.stain import estimate_stains
from ..files import is_ours, result_file, writing
from ..labels import CLASSES
from ..preparation.splits import count_patients
from . import dataset_plots as plots
from .colours import class_colours

_CAPTIONS = load(Path(__file__).with_name('captions.yml'))
FIGURES = tuple(_CAPTIONS)
"""Stems of the files of :func:`write_figures`, in the order of the page."""
_STAIN_WINDOW, _STAIN_STEP, _STAIN_ROIS = 1024, 4, 4  # px in the middle of an ROI, every n-th pixel, ROIs per patient


class Picture(NamedTuple):
    """A picture of the page."""

    title: str  # heading
    text: str  # sentence under the heading
    alt: str  # text alternative for screen readers
    content: bytes  # of the file, PNG or JPEG

    @property
    def source(self) -> str:
        """Data URI of the picture."""
        kind = 'png' if self.content.startswith(b'\x89PNG') else 'jpeg'
        return f'data:image/{kind};base64,{b64encode(self.content).decode()}'


def html_environment(folder: Path) -> Environment:
    """Return a jinja2 environment of ``folder/templates``; ``static(name)`` inlines a file of ``folder/static``."""
    options = dict(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment = Environment(loader=FileSystemLoader(folder / 'templates'), **options)
    environment.globals['static'] = lambda name: Markup((folder / 'static' / name).read_text(encoding='utf-8'))
    return environment


def dataset_page(members: dict[str, list[dict]], crops: plots.SampledCrops | None, **content: object) -> str:
    """Return the page as HTML.

    Args:
        members: {part: index entries of its ROIs}.
        crops: sampled training crops; None omits their columns of the table.
        content: title, facts {name: value} above the table, notes (sentences) and pictures below it.
    """
    columns = ['class', *(f'pixels, {part}' for part in members), 'ROIs', 'patients']
    if crops is not None:
        columns += ['share in the training data', 'share in the sampled crops', 'crops that contain it']
    rows = _rows(members, crops)
    absent = sum(not row['present'] for row in rows)
    template = html_environment(Path(__file__).parent).get_template('dataset.html.j2')
    return template.render(content, columns=columns, rows=rows, absent=absent)


def _rows(members: dict[str, list[dict]], crops: plots.SampledCrops | None) -> list[dict]:
    """Return name, colour, cells and presence of each class."""
    pixels = [plots.class_pixels(part) for part in members.values()]
    rows = []
    for i, name in enumerate(CLASSES):
        holders = [r for part in members.values() for r in part if r['pixels'][i]]
        cells = [f'{p[i]:,}' for p in pixels] + [str(len(holders)), str(count_patients(holders))]
        if crops is not None:
            shares = (p[i] / max(1, p.sum()) for p in (crops.data_pixels, crops.pixels))
            cells += map(plots.percent, (*shares, crops.holding[i] / crops.count))
        rows.append(dict(name=name, colour=class_colours(name, i).official, cells=cells, present=bool(holders)))
    return rows


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
    unclear = ', '.join(p.patient for p in stains if p.stains is None)
    notes = dict(roi_sizes=stream, stains=unclear)  # shown if true
    pictures = []
    for name, caption in _CAPTIONS.items():
        path = out / f'{name}.png'
        if figure := figures[name]:
            with writing(path), result_file(path) as partial:
                figure.savefig(partial, dpi=110)
            note = ' ' + caption['note'].format(patients=unclear) if notes.get(name) else ''
            pictures.append(Picture(caption['title'], caption['text'] + note, caption['alt'], path.read_bytes()))
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
