"""Audit the files of one ROI, decode them once, and write the arrays."""

import hashlib
from dataclasses import asdict
from itertools import product
from pathlib import Path

import cv2
import numpy as np

from ..datasets.prepared import CONTEXT, array_paths, link_arrays
from ..datasets.verification import roi_faults
from ..files import sha256
from ..images.png import DamagedPicture
from ..labels import IGNORE, DecodedMask, MaskError, count_classes
from ..untrusted import MAX_GB_VARIABLE, max_decoded_bytes
from .findings import Finding
from .pictures import read_image, read_mask

FACTS = (
    'sources', 'findings', 'height', 'width', 'pixels', 'unannotated', 'stray', 'encoding', 'picture', 'context', 'arrays',
)  # fmt: skip
"""Keys of the result of :func:`audit_roi`, kept in the index entry."""
POINTS = 2048  # pixels of each class that are kept for sampling crops around them
SMALL = 512
OTHER_FORMATS = ('.tif', '.tiff', '.PNG', '.jpg', '.jpeg', '.bmp', '.webp', '.npy')
_CONTEXT_DOUBTS = ('mask-stray', 'mask-fringes', 'picture-turned')
"""Findings on context files that are reported as they are; errors become 'context-faulty'."""
MAX_SLACK = 16  # px by which the annotated areas of the context mask and the ROI mask may differ
MIN_AGREEMENT = 0.9
MAX_DIFFERENCE = 12.0  # grey levels between the smoothed image of an ROI and the same region of its context


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
        sources: see :meth:`.release.RoiRecord.sources`.
        out: prepared folder to write to; None only audits.
        old: prepared folder of an earlier run, whose facts of this ROI are ``known``: if the checksums of the sources and of
            the arrays are unchanged, its arrays are linked instead of decoding again.
        ids: {id in the masks: our id}, see :func:`mmseg_ignite.labels.decode_mask`.

    Returns:
        Facts from the files alone: ``sources`` (SHA-256 of each file), ``findings`` (as dictionaries), ``picture`` (hash of
        the decoded image, None if it is blank) where the image can be read, and, without error, ``height``, ``width`` (px),
        ``pixels`` (16 counts), ``unannotated``, ``stray`` (px), ``encoding``, ``context`` (None, or its height, width and
        the ROI's ``origin`` in it) and ``arrays`` (SHA-256 of each array file written).
    """
    files = _Files(name, sources, ids)
    checksums = {k: hashlib.sha256(c).hexdigest() for k, c in files.content.items() if isinstance(c, bytes)}
    reusable = known is not None and len(checksums) == len(files.content)
    kept = _unchanged(known, sources, checksums) if reusable else None
    if kept is not None and (out is None or _link(old, out, name, kept)):
        return kept
    facts = dict(sources=checksums)
    image, mask = (files.read(which, files.findings) for which in ('image', 'mask'))
    if image is not None:
        facts['picture'] = _hash_image(image, files)
    if image is not None and mask is not None:
        facts.update(_compare(image, mask, files))
    good = not any(f.severity == 'error' for f in files.findings)
    context = _read_context(files, (image, mask.labels) if good else None)
    if good:
        facts.update(context=context and context[2], arrays={})
    if good and out is not None:
        points = _points(mask.labels, seed=int(checksums['image'][:16], 16))
        arrays = (image, mask.labels, points, *(context or ())[:2])
        for path, array in zip(array_paths(out, name, context is not None), arrays):
            np.save(path, array)
            facts['arrays'][path.relative_to(out).as_posix()] = sha256(path)
    facts['findings'] = [asdict(f) for f in files.findings]
    return facts


class _Files:
    """The files of an ROI: ``content`` has the bytes of each existing file, or the error on reading them."""

    def __init__(self, name: str, sources: dict[str, Path], ids: dict[int, int] | None):
        self.name, self.sources, self.ids = name, sources, ids
        self.findings: list[Finding] = []
        self.content: dict[str, bytes | OSError] = {}
        for which, path in sources.items():
            try:
                if path.is_file():
                    self.content[which] = _read(path)
            except OSError as error:
                self.content[which] = error

    def report(self, kind: str, detail: str) -> None:
        """Add a finding on the ROI as a whole."""
        self.findings.append(Finding(kind, self.name, detail, self.name))

    def read(self, which: str, findings: list[Finding]) -> np.ndarray | DecodedMask | None:
        """Decode the file ``which`` of ``sources``; None, with a finding in ``findings``, if it is damaged.

        An 'image' becomes (H, W, 3) uint8 RGB, a 'mask' a DecodedMask.
        """
        kind, path = which.removeprefix('context_'), self.sources[which]

        def report(fault: str, detail: str) -> None:
            findings.append(Finding(fault, '/'.join(path.parts[-3:]), detail, self.name))

        content = self.content.get(which)
        if content is None:
            report(f'{kind}-missing', f'the overview lists it, but it does not exist{_other_format(path)}')
        elif isinstance(content, OSError):
            report(f'{kind}-unreadable', f'it cannot be read ({content.strerror or content})')
        else:
            try:
                return read_image(content, report) if kind == 'image' else read_mask(content, report, self.ids)
            except DamagedPicture as error:
                report(f'{kind}-unreadable', str(error))
            except MaskError as error:
                report(error.kind, error.detail)
        return None


def _read(path: Path) -> bytes:
    """Read a file; raise OSError if it is larger than an image may be when decoded."""
    if (size := path.stat().st_size) > (most := max_decoded_bytes()):
        raise OSError(f'it has {size:,} bytes; at most {most / 1e9:g} GB are read, which {MAX_GB_VARIABLE} sets')
    return path.read_bytes()


def _unchanged(known: dict, sources: dict[str, Path], checksums: dict[str, str]) -> dict | None:
    """Return the facts of an earlier run, without the context if it is not wanted now; None if the files changed."""
    if any(known['sources'].get(k) != checksums.get(k) for k in sources):
        return None
    if 'context_image' not in sources:
        kept = (f for f in known['findings'] if not f['kind'].startswith('context-'))
        findings = [f for f in kept if CONTEXT not in f['subject']]
        arrays = {p: c for p, c in known['arrays'].items() if not p.endswith(f'{CONTEXT}.npy')}
        return dict(known, sources=checksums, findings=findings, context=None, arrays=arrays)
    # A run without context did not look for the files.
    if len(checksums) < len(sources) and not any(f['kind'] == 'context-missing' for f in known['findings']):
        return None
    return known


def _link(old: Path, out: Path, name: str, known: dict) -> bool:
    """Link the arrays of an earlier run; return False if they, or what its index says of them, have changed since."""
    if not known['arrays'] or roi_faults(old, dict(known, name=name)):
        return False
    return link_arrays(old, out, name, context=known['context'] is not None)


def _other_format(path: Path) -> str:
    """Return a hint if the file exists in a format that is not read."""
    found = [p.name for suffix in OTHER_FORMATS if (p := path.with_name(path.stem + suffix)).is_file()]
    advice = 'but only .png files are read: export it as PNG, masks without interpolation'
    return f' ({found[0]} does, {advice})' if found else ''


def _hash_image(image: np.ndarray, files: _Files) -> str | None:
    """Hash the pixels, to find images that occur twice; None if the image is blank, as all blank images are equal."""
    if (image[::64, ::64] == image[0, 0]).all() and (image == image[0, 0]).all():
        files.report('image-blank', f'all its pixels are {tuple(image[0, 0].tolist())}')
        return None
    return hashlib.blake2b(image, digest_size=16, salt=repr(image.shape[1]).encode()).hexdigest()


def _compare(image: np.ndarray, mask: DecodedMask, files: _Files) -> dict:
    """Return the facts that need image and mask."""
    (height, width), labels = image.shape[:2], mask.labels
    if (height, width) != labels.shape:
        sizes = f'the image is {height} x {width} px, the mask {labels.shape[0]} x {labels.shape[1]}'
        files.report('size-mismatch', sizes)
        return {}
    pixels = count_classes(labels)
    if not pixels.any():
        files.report('roi-unannotated', 'no pixel is annotated')
    if min(height, width) < SMALL:
        files.report('roi-small', f'{height} x {width} px is less than a crop of {SMALL}')
    unannotated = int(labels.size - pixels.sum())
    facts = dict(height=height, width=width, pixels=pixels.tolist(), unannotated=unannotated)
    return dict(**facts, stray=mask.stray, encoding=mask.encoding)


def _read_context(
    files: _Files, roi: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray, dict] | None:
    """Read image, labels and facts of an ROI with the tissue around it.

    None if it is not wanted, missing, faulty or contradicts ``roi``, the image and labels; without them (None), the files
    are only checked by themselves.
    """
    names = [name for name in files.sources if name.startswith('context_')]  # image, mask
    if missing := [name.removeprefix('context_') for name in names if name not in files.content]:
        files.report('context-missing', f'no {" and no ".join(missing)} with context')
    if missing or not names:
        return None
    found: list[Finding] = []
    around, mask = (files.read(name, found) for name in names)
    files.findings += [f for f in found if f.kind in _CONTEXT_DOUBTS]
    if around is None or mask is None or around.shape[:2] != mask.labels.shape:
        faults = [f'{f.subject}: {f.detail}' for f in found if f.severity == 'error']
        files.report('context-faulty', [*faults, 'image and mask with context differ in size'][0])
        return None
    if roi is None or (roi[1] == IGNORE).all():  # unannotated: nothing to locate the ROI by
        return None
    origin, fault = locate(roi[1], mask.labels)
    if origin is not None:
        (y, x), (height, width) = origin, roi[1].shape
        regions = (roi[0], around[y : y + height, x : x + width])
        size = (max(1, width // 16), max(1, height // 16))
        smooth = [cv2.resize(r[::4, ::4].copy(), size, interpolation=cv2.INTER_AREA) for r in regions]
        difference = float(cv2.absdiff(*smooth).mean())
        fault = f'the images differ by {difference:.0f} grey levels' if difference > MAX_DIFFERENCE else ''
    if fault:
        files.report('context-contradicts', fault)
        return None
    return around, mask.labels, dict(zip(('height', 'width'), mask.labels.shape), origin=list(origin))


def _box(labels: np.ndarray) -> np.ndarray:
    """Return the bounding box of the annotated pixels: (top, left, bottom, right), the last two exclusive."""
    annotated = labels != IGNORE
    rows, columns = np.flatnonzero(annotated.any(1)), np.flatnonzero(annotated.any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


def locate(labels: np.ndarray, around: np.ndarray) -> tuple[tuple[int, int] | None, str]:
    """Locate an ROI in the mask with context around it.

    In the release the two masks may differ slightly: for patient1_he_roi1 the annotated area of the context mask is two
    rows taller than the ROI. So all offsets between matching corners are tried, and the best one is returned.

    ``labels`` are the (H, W) train ids of the ROI, at least one pixel annotated; ``around`` those of the context mask, 255
    outside the ROI. Return ((y, x) of the ROI's first pixel, ''), or (None, why the masks contradict each other).
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
    height, width = labels.shape
    step = max(1, int((labels.size / 40_000) ** 0.5))
    sample = labels[::step, ::step]
    annotated, shares = sample != IGNORE, {}
    for y, x in product(range(first[0], last[0] + 1), range(first[1], last[1] + 1)):
        same = around[y : y + height : step, x : x + width : step] == sample
        shares[y, x] = same[annotated].sum() / max(1, annotated.sum())
    if not shares:
        return None, f'the ROI of {height} x {width} px does not fit into its context'
    best = max(shares, key=shares.get)
    if shares[best] < MIN_AGREEMENT:
        return None, f'only {shares[best]:.0%} of the annotated pixels have the same class in both masks'
    return best, ''


def _points(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return (N, 3) uint16 rows of class, y, x: up to POINTS random pixels of each class, sorted by class."""
    rng, rows = np.random.default_rng(seed), []
    for train_id in np.flatnonzero(count_classes(labels)):
        flat = np.flatnonzero(labels.ravel() == train_id)
        if len(flat) > POINTS:
            flat = np.sort(rng.choice(flat, POINTS, replace=False, shuffle=False))
        rows.append(np.stack([np.full(len(flat), train_id), flat // labels.shape[1], flat % labels.shape[1]], 1))
    return np.concatenate(rows).astype(np.uint16) if rows else np.empty((0, 3), np.uint16)
