"""Scoring without a model: a saved run anew, another tool's label PNGs, two runs against each other."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from ..errors import IgniteError
from ..evaluation import Evaluation, compare, write_run
from ..evaluation.bootstrap import SAMPLES, check_samples
from ..evaluation.boundary import check_tolerance
from ..evaluation.evaluation import METRICS, score_roi
from ..evaluation.protocols import check_groupings
from ..files import write_json
from ..labels import CLASSES, IGNORE, NUM_CLASSES, histogram
from ..preparation.audit import cores
from ..preparation.png import DamagedPicture, check_png, decode
from ..preparation.store import label_path, metadata, open_array, read_index, select

ENCODINGS = ('auto', 'raw', 'train')
CONTEXT = ('checkpoint', 'config', 'split', 'protocol', 'predictions', 'encoding')
"""Keys of metrics.json that the counts do not know, kept when a run is scored anew."""
_OTHER = 254
"""What a pixel of no class becomes; no encoding of 16 classes holds it."""


def rescore(
    run: 'str | Path',
    out: 'str | Path | None' = None,
    groupings: 'dict | None' = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict:
    """Make all figures of a saved run anew, e.g. with other groupings; nothing is predicted.

    Args:
        run: the run's folder, or its ``confusion.npz``.
        out: folder to write. Defaults to None: the run's own.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        IgniteError: no such run, or a grouping is wrong.
    """
    evaluation, run = Evaluation.load(run), Path(run)
    folder = run if run.is_dir() else run.parent
    return write_run(out or folder, evaluation, _context(folder), groupings, samples, seed)


def _context(folder: Path) -> dict:
    """What an earlier metrics.json says of the run beside its figures; nothing if there is none."""
    try:
        found = json.loads((folder / METRICS).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return {key: found[key] for key in CONTEXT if key in found} if isinstance(found, dict) else {}


def score_folder(
    predictions: 'str | Path',
    data: 'str | Path',
    out: 'str | Path',
    protocol: str = 'patient-8-1-1',
    split: str = 'test',
    encoding: str = 'auto',
    groupings: 'dict | None' = None,
    boundary_tolerance_um: 'float | None' = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict:
    """Score label PNGs of any tool, ``NAME.png`` for each ROI of a part of a prepared data set.

    Args:
        predictions: folder of 8-bit PNGs with one channel (or palettes). ``NAME_overlay.png`` beside them is let be.
        data: a prepared data set, whose labels are the truth.
        out: folder to write.
        encoding: 'raw', ids 1..16, 0 where nothing was predicted; 'train', ids 0..15, 255 where nothing was predicted; 'auto'
            takes that which alone fits: raw if a pixel is 16, train if one is 255. A pixel without prediction is an error of
            its class.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        IgniteError: files missing, too many, damaged, of another size, with other values; an encoding that cannot be told.
    """
    if encoding not in ENCODINGS:
        raise IgniteError(f'{encoding!r} is no encoding of label PNGs: choose one of {", ".join(ENCODINGS)}.')
    check_groupings(groupings, CLASSES)  # before the work
    if samples:
        check_samples(samples)
    if boundary_tolerance_um is not None:
        check_tolerance(boundary_tolerance_um)
    entries = select(read_index(data), protocol, split, str(data))
    if not entries:
        raise IgniteError(f'{data} has no ROI in the {split} part of {protocol}: nothing to score.')
    folder = Path(predictions)
    _check_files(folder, [e['name'] for e in entries], f'the {split} part of {protocol}')
    if encoding == 'auto':
        encoding = _tell_encoding(folder, [e['name'] for e in entries])

    def one(entry: dict) -> dict:
        truth = np.asarray(open_array(label_path(data, entry['name'])))
        prediction = _read_prediction(folder / f'{entry["name"]}.png', truth.shape, encoding)
        known = dict(roi=entry['name'], patient=entry['patient'], um_per_px=entry['um_per_px'], **metadata(entry))
        return score_roi(known, truth, prediction, NUM_CLASSES, boundary_tolerance_um)

    evaluation = Evaluation.collect(list(_parallel(one, entries)), CLASSES, boundary_tolerance_um)
    context = dict(predictions=str(predictions), encoding=encoding, split=split, protocol=protocol)
    return write_run(out, evaluation, context, groupings, samples, seed)


def _parallel(call: Callable, items: list) -> Iterator:
    """Results in order; the first error ends it and starts no further call."""
    with ThreadPoolExecutor(cores()) as pool:
        try:
            yield from pool.map(call, items)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_labels(path: 'str | Path') -> np.ndarray:
    """A label PNG as stored, (H, W) uint8; palettes give their indices.

    Raises:
        IgniteError: no such file, no whole PNG, or not of 8 bits and one channel.
    """
    try:
        content = Path(path).read_bytes()
        header = check_png(content)
        if header.bits != 8 or header.colour not in ('grayscale', 'palette'):
            raise IgniteError(
                f'{path} is {header.colour} of {header.bits} bits; a label PNG of 8 bits and one channel was expected: '
                'save the ids as they are.'
            )
        if header.colour == 'grayscale':  # OpenCV is faster, but knows no indices
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            if pixels is not None and pixels.shape == (header.height, header.width):
                return pixels
        return decode(content, header)
    except OSError as error:
        raise IgniteError(f'{path} cannot be read ({error.strerror or error}): check the file.') from error
    except DamagedPicture as error:
        raise IgniteError(f'{path} is no whole PNG ({error}): write it again.') from error


def _read_prediction(path: Path, shape: 'tuple[int, int]', encoding: str) -> np.ndarray:
    """A label PNG as train ids, (H, W) uint8, 255 where nothing was predicted; checked."""
    stored = read_labels(path)
    if stored.shape != shape:
        found, expected = (' x '.join(map(str, s)) for s in (stored.shape, shape))
        raise IgniteError(f'{path} has {found} px (H x W), its ROI {expected}: predict at the size of the ROI.')
    table = np.full(256, _OTHER, np.uint8)
    if encoding == 'raw':
        table[0], table[1 : NUM_CLASSES + 1] = IGNORE, np.arange(NUM_CLASSES)
    else:
        table[:NUM_CLASSES], table[IGNORE] = np.arange(NUM_CLASSES), IGNORE
    ids = cv2.LUT(stored, table)
    if ids.max() >= _OTHER and (ids == _OTHER).any():  # the maximum alone is quicker, and most files hold neither
        known = f'0..{NUM_CLASSES}' if encoding == 'raw' else f'0..{NUM_CLASSES - 1} or 255'
        raise IgniteError(
            f'{path} holds the value {stored[ids == _OTHER][0]}; {encoding} ids, {known}, were expected: name the right '
            'encoding, or mend the file.'
        )
    return ids


def _check_files(folder: Path, names: 'list[str]', part: str) -> None:
    if not folder.is_dir():
        raise IgniteError(f'{folder} is no folder; one of label PNGs was expected: check the path.')
    found = {path.stem for path in folder.glob('*.png')}
    missing = sorted(set(names) - found)
    if missing:
        raise IgniteError(
            f'{folder} lacks {len(missing)} of the {len(names)} ROIs of {part}, e.g. {missing[0]}.png: predict them, '
            'or choose another split or protocol.'
        )
    extra = sorted(found - set(names) - {f'{name}_overlay' for name in names})
    if extra:
        raise IgniteError(
            f'{folder} holds PNGs of no ROI of {part} ({len(extra)}, e.g. {extra[0]}.png): move them away, or choose another '
            'split or protocol.'
        )


def _tell_encoding(folder: Path, names: 'list[str]') -> str:
    """The encoding that alone fits the values of the files; reads no more of them than it needs."""
    for counts in _parallel(lambda name: histogram(read_labels(folder / f'{name}.png')), names):
        if counts[NUM_CLASSES]:
            return 'raw'
        if counts[IGNORE]:
            return 'train'
    raise IgniteError(
        f'the PNGs of {folder} hold neither {NUM_CLASSES} (raw ids 1..16) nor 255 (train ids 0..15), so their encoding '
        'cannot be told: say --encoding raw or --encoding train.'
    )


def compare_runs(
    a: 'str | Path', b: 'str | Path', out: 'str | Path | None' = None, samples: int = SAMPLES, seed: int = 0
) -> dict:
    """Whether run B is better than run A, see :func:`mmseg_ignite.evaluation.compare`; written as JSON if asked.

    Raises:
        IgniteError: no such runs, or they do not compare.
    """
    result = dict(a=str(a), b=str(b), **compare(Evaluation.load(a), Evaluation.load(b), samples, seed))
    if out is not None:
        try:
            write_json(out, result)
        except OSError as error:
            raise IgniteError(f'{out} cannot be written ({error.strerror or error}): choose another file.') from error
    return result


def read_groupings(path: 'str | Path') -> dict:
    """Groupings of a JSON file, {grouping: {group: [class names] or 'rest'}}; what is in them is checked when scoring.

    Raises:
        IgniteError: no such file, or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise IgniteError(
            f'{path} cannot be read as JSON ({error}); {{grouping: {{group: [class names]}}}} was expected: mend it.'
        ) from error
