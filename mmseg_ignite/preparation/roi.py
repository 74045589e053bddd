"""One ROI of a release: its files audited, decoded once, and written as arrays."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from ..datasets.prepared import CONTEXT, image_path, label_path, link_arrays, open_array, points_path
from ..errors import IgniteError
from ..images.png import DamagedPicture
from ..labels import IGNORE, MaskError, count_classes
from .findings import Finding
from .pictures import read_image, read_mask

FACTS = (
    'sources',
    'findings',
    'height',
    'width',
    'pixels',
    'unannotated',
    'stray',
    'encoding',
    'picture',
    'context',
    'arrays',
)
"""What :func:`audit_roi` returns, kept in the index entry."""
POINTS = 2048
"""Pixels of each class that an ROI keeps for drawing crops around them."""
SMALL = 512
OTHER_FORMATS = ('.tif', '.tiff', '.PNG', '.jpg', '.jpeg', '.bmp', '.webp', '.npy')
_CONTEXT_DOUBTS = ('mask-stray', 'mask-fringes', 'picture-turned')
"""Findings on context files that are shown as they are; errors there are 'context-faulty'."""
MAX_SLACK = 16
"""px by which the annotated area of a context mask may be larger or smaller than that of its ROI mask."""
MIN_AGREEMENT = 0.9
MAX_DIFFERENCE = 12.0
"""Grey levels between the smoothed pictures of an ROI and of its place in the context."""


def audit_roi(
    name: str,
    sources: dict[str, Path],
    out: Path | None = None,
    old: Path | None = None,
    known: dict | None = None,
    ids: dict[int, int] | None = None,
) -> dict:
    """Audit the files of an ROI and, if ``out`` is given and there is no error, write its arrays.

    Args:
        name: of the ROI.
        sources: see :meth:`RoiRecord.sources`.
        out: prepared folder that is being written; None audits only.
        old: prepared folder of an earlier run, with what it knows of this ROI in ``known``: where the checksums of the
            sources and of the arrays are the same, its arrays are linked instead of decoding anew.
        ids: {id in the masks: our id}, see :func:`mmseg_ignite.labels.decode_mask`.

    Returns:
        Facts that follow from the files alone: ``sources`` (SHA-256 of each file there), ``findings`` (as dictionaries)
        ``picture`` (hash of the decoded image, None if it is blank) where the image can be read, and, without error,
        ``height``, ``width`` (px), ``pixels`` (16 counts), ``unannotated``, ``stray`` (px), ``encoding``, ``context`` (None,
        or its height, width and the ROI's ``origin`` in it) and ``arrays`` (checksum of each array file written).
    """
    content = _load(sources)
    checksums = {k: hashlib.sha256(c).hexdigest() for k, c in content.items() if isinstance(c, bytes)}
    kept = _still_true(known, sources, checksums) if known is not None and len(checksums) == len(content) else None
    if kept is not None and (out is None or _take_over(old, out, name, kept)):
        return kept
    findings: list[Finding] = []
    facts = dict(sources=checksums)
    image = _read(name, sources, content, 'image', findings, ids)
    labels = _read(name, sources, content, 'mask', findings, ids)
    if image is not None:
        facts['picture'] = _picture(name, image, findings)
    if image is not None and labels is not None:
        facts.update(_compare(name, image, labels, findings))
    good = not any(f.severity == 'error' for f in findings)
    context = _read_context(name, sources, content, (image, labels.labels) if good else None, findings, ids)
    if good:
        facts.update(context=context and context[2], arrays={})
        if out is not None:
            facts['arrays'] = _write(out, name, image, labels.labels, context, checksums['image'])
    facts['findings'] = [asdict(f) for f in findings]
    return facts


def _load(sources: dict[str, Path]) -> dict[str, bytes | OSError]:
    """The bytes of each file that is there, or why they cannot be read."""
    content = {}
    for which, path in sources.items():
        try:
            if path.is_file():
                content[which] = path.read_bytes()
        except OSError as error:
            content[which] = error
    return content


def _still_true(known: dict, sources: dict[str, Path], checksums: dict[str, str]) -> dict | None:
    """What an earlier run found out, less the context where that is not wanted now; None if the files changed."""
    if any(known['sources'].get(k) != checksums.get(k) for k in sources):
        return None
    if 'context_image' not in sources:
        findings = [
            f for f in known['findings'] if not f['kind'].startswith('context-') and CONTEXT not in f['subject']
        ]
        arrays = {p: c for p, c in known['arrays'].items() if not p.endswith(f'{CONTEXT}.npy')}
        return dict(known, sources=checksums, findings=findings, context=None, arrays=arrays)
    # A run without context did not look whether there is one.
    if len(checksums) < len(sources) and not any(f['kind'] == 'context-missing' for f in known['findings']):
        return None
    return known


def _take_over(old: Path, out: Path, name: str, known: dict) -> bool:
    """Link the arrays of an earlier run; False if they are not what was written then."""
    try:
        if not known['arrays'] or any(_digest(open_array(old / p)) != c for p, c in known['arrays'].items()):
            return False
    except IgniteError:
        return False
    return link_arrays(old, out, name, context=known['context'] is not None)


def _digest(array: np.ndarray) -> str:
    shape = repr(array.shape[:2]).encode()[:16]
    return hashlib.blake2b(np.ascontiguousarray(array), digest_size=16, salt=shape).hexdigest()


def _read(name: str, sources: dict, content: dict, which: str, findings: list[Finding], ids: dict | None) -> object:
    """Decode 'image' to (H, W, 3) uint8 RGB, 'mask' to a DecodedMask; None, with a finding, where that fails."""
    subject = '/'.join(sources[which].parts[-3:])

    def report(kind: str, detail: str) -> None:
        findings.append(Finding(kind, subject, detail, name))

    if which not in content:
        report(f'{which}-missing', f'the overview lists it, it is not there{_of_other_format(sources[which])}')
        return None
    if isinstance(content[which], OSError):
        report(f'{which}-unreadable', f'it cannot be read ({content[which].strerror or content[which]})')
        return None
    try:
        return read_image(content[which], report) if which == 'image' else read_mask(content[which], report, ids)
    except DamagedPicture as error:
        report(f'{which}-unreadable', str(error))
    except MaskError as error:
        report(error.kind, error.detail)
    return None


def _of_other_format(path: Path) -> str:
    """What to add where the file is there in a format that is not read."""
    other = [path.with_name(path.stem + suffix) for suffix in OTHER_FORMATS]
    found = next((p.name for p in other if p.is_file()), None)
    return (
        f' ({found} is, but only .png files are read: export it as PNG, masks without interpolation)' if found else ''
    )


def _picture(name: str, image: np.ndarray, findings: list[Finding]) -> str | None:
    """What tells a picture from others; None if it is blank, since all blank ones are the same."""
    if (image[::64, ::64] == image[0, 0]).all() and (image == image[0, 0]).all():
        findings.append(Finding('image-blank', name, f'all its pixels are {tuple(image[0, 0].tolist())}', name))
        return None
    return hashlib.blake2b(image, digest_size=16, salt=repr(image.shape[1]).encode()).hexdigest()


def _compare(name: str, image: np.ndarray, mask, findings: list[Finding]) -> dict:
    """What image and mask say together."""
    shape, labels = image.shape[:2], mask.labels
    if shape != labels.shape:
        detail = f'the image is {shape[0]} x {shape[1]} px, the mask {labels.shape[0]} x {labels.shape[1]}'
        findings.append(Finding('size-mismatch', name, detail, name))
        return {}
    pixels = count_classes(labels)
    if not pixels.any():
        findings.append(Finding('roi-unannotated', name, 'no pixel is annotated', name))
    if min(shape) < SMALL:
        findings.append(Finding('roi-small', name, f'{shape[0]} x {shape[1]} px is less than a crop of {SMALL}', name))
    return dict(
        height=shape[0],
        width=shape[1],
        pixels=pixels.tolist(),
        unannotated=int(labels.size - pixels.sum()),
        stray=mask.stray,
        encoding=mask.encoding,
    )


def _read_context(name: str, sources: dict, content: dict, roi: tuple | None, findings: list[Finding], ids=None):
    """(image, labels, facts) of the ROI with tissue around it; None where there is none, or none to trust.

    ``roi`` is image and labels of the ROI; where they are faulty the files are judged without it.
    """
    if 'context_image' not in sources:  # not wanted
        return None
    if 'context_image' not in content or 'context_mask' not in content:
        lacking = [w for w in ('context_image', 'context_mask') if w not in content]
        findings.append(
            Finding('context-missing', name, f'no {" and no ".join(w[8:] for w in lacking)} with context', name)
        )
        return None
    own: list[Finding] = []
    around = _decode_context(name, sources, content, own, ids)
    findings += [f for f in own if f.kind in _CONTEXT_DOUBTS]
    if around is None:
        faults = [f'{f.subject}: {f.detail}' for f in own if f.severity == 'error']
        faults.append('image and mask with context differ in size')
        findings.append(Finding('context-faulty', name, faults[0], name))
        return None
    if roi is None:
        return None
    image, labels = roi
    around_image, around_labels = around
    if (labels == IGNORE).all():  # nothing tells where the ROI lies in it
        return None
    origin, fault = locate(labels, around_labels)
    if origin is not None:
        y, x = origin
        place = around_image[y : y + labels.shape[0], x : x + labels.shape[1]]
        size = tuple(max(1, s // 16) for s in labels.shape[::-1])
        smooth = [cv2.resize(p[::4, ::4].copy(), size, interpolation=cv2.INTER_AREA) for p in (image, place)]
        difference = float(cv2.absdiff(*smooth).mean())
        fault = f'the images differ by {difference:.0f} grey levels' if difference > MAX_DIFFERENCE else ''
    if fault:
        findings.append(Finding('context-contradicts', name, fault, name))
        return None
    height, width = around_labels.shape
    return around_image, around_labels, dict(height=height, width=width, origin=list(origin))


def _decode_context(name: str, sources: dict, content: dict, own: list[Finding], ids) -> tuple | None:
    names = dict(image='context_image', mask='context_mask')
    files, bytes_ = ({k: d[v] for k, v in names.items()} for d in (sources, content))
    image, mask = (_read(name, files, bytes_, which, own, ids) for which in names)
    if image is None or mask is None or image.shape[:2] != mask.labels.shape:
        return None
    return image, mask.labels


def _box(labels: np.ndarray) -> np.ndarray:
    """Bounding box of the annotated pixels: (top, left, bottom, right), the last two exclusive."""
    annotated = labels != IGNORE
    rows, columns = np.flatnonzero(annotated.any(1)), np.flatnonzero(annotated.any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


def locate(labels: np.ndarray, around: np.ndarray) -> tuple[tuple[int, int] | None, str]:
    """Where an ROI lies in the mask with context around it.

    In the release the two need not agree to the pixel: for patient1_he_roi1 the annotated area of the context mask is
    two rows taller than the ROI. So every place between matching corners is tried, and the best one taken.

    Args:
        labels: (H, W) train ids of the ROI, some of them annotated.
        around: (H', W') train ids of the context mask, 255 outside the ROI.

    Returns:
        ((y, x) of the ROI's first pixel, ''), or (None, why the masks contradict each other).
    """
    if (around == IGNORE).all():
        return None, 'the context mask is empty, the ROI mask is not'
    own, other = _box(labels), _box(around)
    if np.abs((other[2:] - other[:2]) - (own[2:] - own[:2])).max() > MAX_SLACK:
        sizes = ' and '.join(f'{b[2] - b[0]} x {b[3] - b[1]}' for b in (own, other))
        return None, f'the annotated areas of ROI and context mask are {sizes} px'
    corners = np.sort([other[:2] - own[:2], other[2:] - own[2:]], axis=0)
    last = np.array(around.shape) - labels.shape
    first, last = np.maximum(corners[0] - 1, 0), np.minimum(corners[1] + 1, last)
    step = max(1, int((labels.size / 40_000) ** 0.5))
    sample = labels[::step, ::step]
    best, best_share = None, -1.0
    for y in range(first[0], last[0] + 1):
        for x in range(first[1], last[1] + 1):
            place = around[y : y + labels.shape[0] : step, x : x + labels.shape[1] : step]
            share = float((place == sample)[sample != IGNORE].mean())
            if share > best_share:
                best, best_share = (int(y), int(x)), share
    if best is None:
        return None, f'the ROI of {labels.shape[0]} x {labels.shape[1]} px does not fit into its context'
    if best_share < MIN_AGREEMENT:
        return None, f'only {best_share:.0%} of the annotated pixels have the same class in both masks'
    return best, ''


def _points(labels: np.ndarray, seed: int) -> np.ndarray:
    """(N, 3) uint16 rows of class, y, x: up to POINTS random pixels of each class, sorted by class."""
    rng, rows = np.random.default_rng(seed), []
    for train_id in np.flatnonzero(count_classes(labels)):
        flat = np.flatnonzero(labels.ravel() == train_id)
        if len(flat) > POINTS:
            flat = np.sort(rng.choice(flat, POINTS, replace=False, shuffle=False))
        rows.append(np.stack([np.full(len(flat), train_id), flat // labels.shape[1], flat % labels.shape[1]], 1))
    return np.concatenate(rows).astype(np.uint16) if rows else np.empty((0, 3), np.uint16)


def _write(out: Path, name: str, image: np.ndarray, labels: np.ndarray, context, checksum: str) -> dict[str, str]:
    """Write the arrays; their checksums by path in the folder."""
    arrays = {
        image_path(out, name): image,
        label_path(out, name): labels,
        points_path(out, name): _points(labels, int(checksum[:16], 16)),
    }
    if context is not None:
        arrays |= {image_path(out, name + CONTEXT): context[0], label_path(out, name + CONTEXT): context[1]}
    for path, array in arrays.items():
        np.save(path, array)
    return {path.relative_to(out).as_posix(): _digest(array) for path, array in arrays.items()}
