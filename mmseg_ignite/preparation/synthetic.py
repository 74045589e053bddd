"""Write a synthetic IGNITE release with the exact layout and 16 simply rendered tissue classes.

Each class has haematoxylin and eosin concentrations: a base, a texture, fibres, vacuoles and nuclei of a certain density
and size. They become RGB by the Beer-Lambert law with the stain vectors of Macenko et al. (2009), and a stain strength,
hue and brightness per patient. The release serves demo, tests and benchmarks; it does not represent real tissue.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..datasets.prepared import CONTEXT
from ..errors import IgniteError
from ..files import atomic_directory, check_output_folder, sha256
from ..labels import ENCODINGS, IGNORE, NUM_CLASSES, RAW_LABEL_MAP, encode_mask
from .label_map import LABEL_MAP
from .release import COLUMNS, OVERVIEW, TASK, TASKS

STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581], [0.10, 0.55, 0.83]], np.float32)
"""Optical density in R, G, B of haematoxylin, eosin (both from Macenko et al. 2009) and an orange residual."""
MARGIN = 64  # pixels of tissue around an ROI in its _with_context image
UM_PER_PX = 0.5
MARKER = 'synthetic.json'  # marks a synthetic release, which may be replaced


@dataclass(frozen=True)
class Tissue:
    """Appearance of a class; radii in px, numbers per 1000 px2, concentrations in units of optical density."""

    haematoxylin: float  # base concentrations
    eosin: float
    residual: float = 0.0
    nuclei: float = 0.0  # number, radius, and their haematoxylin
    radius: float = 4.0
    chromatin: float = 1.1
    texture: float = 0.0  # strength and size (px) of a smooth random texture in eosin
    grain: float = 4.0
    fibres: float = 0.0  # strength of wavy parallel lines
    holes: float = 0.0  # number and radius of clear vacuoles
    hole_radius: float = 6.0
    cells: float = 0.0  # number and radius of eosin discs: red cells, foamy cytoplasm
    cell_radius: float = 4.0


TISSUES = (
    Tissue(0.0, 0.01),  # Background
    Tissue(0.28, 0.25, nuclei=5.5, radius=6.0, chromatin=0.9, texture=0.06),  # Tumor epithelium
    Tissue(0.14, 0.38, nuclei=3.2, radius=4.5, chromatin=1.2, texture=0.05, holes=0.5, hole_radius=5.0),  # Reactive
    Tissue(0.03, 0.36, nuclei=0.7, radius=2.5, fibres=0.22, texture=0.06),  # Stroma
    Tissue(0.18, 0.18, nuclei=14.0, radius=3.2, chromatin=1.5),  # Inflammation
    Tissue(0.03, 0.20, nuclei=0.9, radius=3.0, holes=1.3, hole_radius=13.0),  # Alveolar tissue
    Tissue(0.01, 0.12, nuclei=0.12, radius=2.0, holes=2.9, hole_radius=9.0),  # Fatty tissue
    Tissue(0.22, 0.46, residual=0.12, nuclei=2.0, radius=1.5, chromatin=0.8, texture=0.22, grain=3.0),  # Necrotic
    Tissue(0.0, 0.45, residual=0.25, cells=22.0, cell_radius=3.5),  # Erythrocytes
    Tissue(0.20, 0.30, nuclei=6.0, radius=4.0, chromatin=1.2, fibres=0.30, holes=0.25, hole_radius=8.0),  # Bronchial
    Tissue(0.16, 0.05, texture=0.10, grain=14.0, fibres=0.05),  # Mucus/Plasma/Fluids
    # Cartilage
    Tissue(0.42, 0.06, nuclei=0.6, radius=4.5, chromatin=0.9, holes=0.6, hole_radius=7.0, texture=0.03, grain=20.0),
    Tissue(0.05, 0.30, residual=0.18, nuclei=1.6, radius=4.0, cells=4.0, cell_radius=8.0, texture=0.05),  # Macrophages
    Tissue(0.02, 0.72, nuclei=0.8, radius=3.0, fibres=0.15, texture=0.04),  # Muscle
    Tissue(0.14, 0.52, nuclei=1.5, radius=5.0, chromatin=0.9, texture=0.14, grain=7.0),  # Liver
    Tissue(0.0, 0.95, fibres=0.35, texture=0.10, grain=8.0),  # Keratinization
)


def _noise(rng: np.random.Generator, shape: tuple[int, int], grain: float) -> np.ndarray:
    """Return smooth noise of about unit variance with spots of ``grain`` px."""
    small = rng.standard_normal((int(shape[0] / grain) + 3, int(shape[1] / grain) + 3)).astype(np.float32)
    size = (int(small.shape[1] * grain), int(small.shape[0] * grain))
    return cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)[: shape[0], : shape[1]]


def _discs(rng: np.random.Generator, shape: tuple[int, int], density: float, radius: float) -> np.ndarray:
    """Scatter ``density`` soft-edged ellipses per 1000 px2, values 0..1."""
    canvas = np.zeros(shape, np.uint8)
    for _ in range(rng.poisson(density * shape[0] * shape[1] / 1000)):
        centre = (int(rng.integers(shape[1])), int(rng.integers(shape[0])))
        axes = tuple(max(1, round(radius * rng.uniform(0.7, 1.3))) for _ in range(2))
        cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (3, 3), 0).astype(np.float32) / 255


def _concentrations(tissue: Tissue, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 3) float32 concentrations of haematoxylin, eosin and residual."""
    maps = np.empty((*shape, 3), np.float32)
    maps[:] = tissue.haematoxylin, tissue.eosin, tissue.residual
    if tissue.texture:
        maps[..., 1] += tissue.texture * _noise(rng, shape, tissue.grain)
    if tissue.fibres:
        angle = rng.uniform(0, np.pi)
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        phase = (x * np.cos(angle) + y * np.sin(angle)) / 2.2 + 2.5 * _noise(rng, shape, 30)
        maps[..., 1] += tissue.fibres * np.sin(phase)
    if tissue.cells:
        cells = _discs(rng, shape, tissue.cells, tissue.cell_radius)
        maps[..., 1:] *= (0.55 + 0.75 * cells)[..., None]
    if tissue.nuclei:
        nuclei = _discs(rng, shape, tissue.nuclei, tissue.radius)
        maps[..., 0] += nuclei * tissue.chromatin * (1 + 0.25 * _noise(rng, shape, 2))
    if tissue.holes:
        maps *= 1 - _discs(rng, shape, tissue.holes, tissue.hole_radius)[..., None] * 0.97
    return maps


def _layout(
    rng: np.random.Generator, shape: tuple[int, int], classes: np.ndarray, rare: tuple[int, float] | None = None
) -> np.ndarray:
    """Return train ids in smooth regions of about equal area: the class with the highest noise field wins.

    A rare class (train id, share of the pixels) is a group of islands of some 30 px instead.
    """
    grain = max(24.0, min(shape) / 3)
    fields = np.stack([_noise(rng, shape, grain) + 0.15 * _noise(rng, shape, grain / 6) for _ in classes])
    labels = np.asarray(classes, np.uint8)[fields.argmax(0)]
    if rare is not None:
        islands, nest = np.zeros(shape, np.uint8), rng.uniform(0.2, 0.8, 2) * shape[::-1]
        spread = (rare[1] * islands.size) ** 0.5
        while np.count_nonzero(islands) < rare[1] * islands.size:
            centre = tuple(np.rint(rng.normal(nest, spread)).astype(int).tolist())
            axes = tuple(rng.integers(11, 19, 2).tolist())
            cv2.ellipse(islands, centre, axes, rng.uniform(0, 180), 0, 360, 1, -1)
        labels[islands == 1] = rare[0]
    return labels


def _render(rng: np.random.Generator, patient: list[int], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Render (H, W) train ids in the stain of a patient, given by a random seed.

    Return the image (H, W, 3) uint8 RGB, and the labels with a region of 255, unannotated, in 40 % of the calls.
    """
    stain, shape = np.random.default_rng(patient), labels.shape
    vectors = STAINS * stain.normal(1, 0.04, STAINS.shape).astype(np.float32)
    strength, glass = stain.uniform(0.82, 1.2, 3).astype(np.float32), float(stain.uniform(0.91, 0.98))
    density = np.zeros((*shape, 3), np.float32)
    for train_id in np.unique(labels):
        inside = cv2.GaussianBlur((labels == train_id).astype(np.float32), (3, 3), 0)[..., None]
        density += inside * _concentrations(TISSUES[train_id], rng, shape).clip(0, 2.5)
    light = glass * 10 ** -((density * strength) @ vectors)
    image = 255 * light + rng.normal(0, 2.5, light.shape)
    if rng.random() < 0.4:  # an unannotated region
        labels = np.where(_noise(rng, shape, min(shape) / 2) > 1.2, IGNORE, labels).astype(np.uint8)
    return image.clip(0, 255).astype(np.uint8), labels


def draw_tissue(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Draw tissue of four random classes: (H, W, 3) uint8 RGB; the same arguments give the same image.

    Example:
        >>> draw_tissue((512, 512)).shape
        (512, 512, 3)
    """
    rng = np.random.default_rng(seed)
    return _render(rng, [seed], _layout(rng, shape, rng.choice(NUM_CLASSES, 4, replace=False)))[0]


def _write_roi(folder: Path, name: str, image: np.ndarray, labels: np.ndarray, encoding: str) -> None:
    inner = (slice(MARGIN, -MARGIN),) * 2
    context = np.full_like(labels, IGNORE)
    context[inner] = labels[inner]
    files = {'': (image[inner], encode_mask(labels[inner], encoding)), CONTEXT: (image, encode_mask(context))}
    for suffix, (picture, mask) in files.items():
        cv2.imwrite(str(folder / f'images/he/{name}{suffix}.png'), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        cv2.imwrite(str(folder / f'annotations/he/{name}{suffix}.png'), mask)


def write_synthetic_release(
    out: str | Path,
    rois: int = 60,
    patients: int = 20,
    size: tuple[int, int] = (384, 384),
    seed: int = 0,
    encoding: str = 'complement',
    rare: tuple[int, float] | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Write a synthetic release; the same arguments give the same bytes.

    Args:
        out: folder; an older synthetic release is replaced, unless its files were changed since.
        rois: number of ROIs, distributed evenly over the patients.
        patients: number of patients, each with its own stain; every fifth is in the test split.
        size: (H, W) of the ROIs in px; each varies by up to a tenth. Context images have 64 px more on each side.
        encoding: of the ROI masks, 'complement' as in the known release or 'direct'.
        rare: (class id 1..16, share up to 0.2): the class occurs only in every fourth ROI, in groups of small islands, and
            covers about this share of all pixels.
        on_progress: called after each ROI.

    Raises:
        IgniteError: invalid numbers, or an output folder that must not be written.

    Example:
        >>> write_synthetic_release('data/synthetic', rois=12, patients=6, size=(96, 112))
    """
    if rois < 1 or patients < 1 or patients > rois or min(size) < 64 or seed < 0 or encoding not in ENCODINGS:
        raise IgniteError(
            f'a release cannot have {rois} ROIs of {patients} patients, {size[0]} x {size[1]} px, seed {seed}, encoding '
            f'{encoding!r}: use at least one ROI per patient, 64 x 64 px, a seed of 0 or more, and complement or direct.'
        )
    if rare is not None:
        if not (1 <= rare[0] <= NUM_CLASSES and 0 < rare[1] <= 0.2):
            raise IgniteError(f'the rare class {rare[0]} has a share of {rare[1]}: use 1..16 and a share up to 0.2.')
        rare = rare[0] - 1, rare[1]
    _check_replaceable(Path(out))
    rows = []
    with atomic_directory(out, (MARKER, OVERVIEW, LABEL_MAP, 'images', 'annotations')) as folder:
        for task in TASKS:
            (folder / task / 'he').mkdir(parents=True)
        for number in range(rois):
            rng = np.random.default_rng([seed, 2, number])
            shape = tuple(int(s * rng.uniform(0.9, 1.1)) + 2 * MARGIN for s in size)
            labels = _layout(rng, shape, *_classes(rng, number, patients, rare))
            image, labels = _render(rng, [seed, 1, number % patients], labels)
            rows.append(_row(number, patients, (shape[0] - 2 * MARGIN, shape[1] - 2 * MARGIN)))
            _write_roi(folder, rows[-1]['name'], image, labels, encoding)
            on_progress()
        (folder / LABEL_MAP).write_text(json.dumps(RAW_LABEL_MAP, indent=4) + '\n', encoding='utf-8')
        with (folder / OVERVIEW).open('w', newline='', encoding='utf-8') as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        facts = dict(rois=rois, patients=patients, size=size, seed=seed, rare=rare, files=_files(folder))
        (folder / MARKER).write_text(json.dumps(facts) + '\n')


def _classes(
    rng: np.random.Generator, number: int, patients: int, rare: tuple[int, float] | None
) -> tuple[np.ndarray, tuple[int, float] | None]:
    """Choose the train ids of an ROI so that all classes are equally frequent, and its rare class, if any."""
    classes = np.unique([number % NUM_CLASSES, (number * 7 + 3) % NUM_CLASSES, *rng.integers(NUM_CLASSES, size=3)])
    if rare is None:
        return classes, None
    classes = np.setdiff1d(classes, rare[0]) if len(classes) > 1 else classes
    return classes, (rare[0], 4 * rare[1]) if (number + number // patients) % 4 == 0 else None


def _row(number: int, patients: int, shape: tuple[int, int]) -> dict:
    """Return the overview's row of an ROI of ``shape`` (H, W)."""
    patient, roi, test = number % patients, number // patients + 1, number % patients % 5 == 4
    name = f'patient{patient + 1}_he_roi{roi}'
    specimen, subtype = ('resection', 'biopsy'), ('adenocarcinoma', 'squamous cell carcinoma')
    area = f'{shape[0] * shape[1] * (UM_PER_PX / 1000) ** 2:.6f}'
    paths = (f'../../data/{task}/he/{name}.png' for task in TASKS)
    split = ('test', '') if test else ('train', f'fold{number % 5}')
    origin = ('synthetic', specimen[patient % 2], 'lung', subtype[patient % 3 == 2], f'scanner{patient % 3 + 1}')
    cells = (name, TASK, 'H&E', *split, patient + 1, roi, *origin, f'({shape[0]}, {shape[1]})', area, '', *paths)
    return dict(zip(COLUMNS, cells))


def _files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of a release by relative path."""
    files = (path for path in sorted(folder.rglob('*')) if path.is_file() and path != folder / MARKER)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _check_replaceable(out: Path) -> None:
    """Raise IgniteError if a synthetic release may not be written to ``out``, or if the one there was changed."""
    check_output_folder(out.parent)
    if not (out / MARKER).is_file():
        return  # atomic_directory refuses other folders
    try:
        known = json.loads((out / MARKER).read_text(encoding='utf-8')).get('files', {})
    except (OSError, ValueError, AttributeError):
        known = {}
    changed = sorted(path for path, checksum in _files(out).items() if known.get(path) != checksum)
    if changed:
        raise IgniteError(
            f'{out} is a synthetic release with {len(changed)} added or changed files, e.g. {changed[0]}: choose another '
            'output folder, or delete it.'
        )
