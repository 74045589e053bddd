"""Predicting files: label PNGs, overlays, and a record of how each was made."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..engine.ensembles import Ensemble
from ..errors import IgniteError
from ..files import check_outputs, check_writable, printable, visible_files, write_result, writing
from ..images.reading import MAX_PIXELS, SUFFIXES, ReadImage, read_image
from ..labels import CLASSES
from ..provenance import file_sha256
from ..version import __version__
from ..visualization.colours import PALETTES, Colours
from ..visualization.overlay import prediction_files, write_prediction
from .predictor import TOLERANCE, Predictor, check_resolution

RUN = 'run.json'


def predict(
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    device: str | None = None,
    amp: bool = False,
    report: Callable[[str], None] = print,
    **options: object,
) -> list[str]:
    """Predict images and folders of images with a checkpoint; check everything before the model is built.

    Args:
        cfg: config of the model; it is not changed.
        checkpoint, device, amp: see :class:`Predictor`.
        images, out, options: see :func:`predict_files`.
        report: called with a line of text for each image.

    Returns:
        One sentence for each image that could not be predicted.

    Raises:
        IgniteError: see :class:`Predictor` and :func:`predict_files`.

    Example:
        >>> predict(load_config(config), 'work_dirs/b0/iter_20000.pth', ['slides/'], 'predictions', um_per_px=0.5)
    """
    ensemble = Ensemble.read(checkpoint)
    inputs = [path for path in (cfg.filename, ensemble.path, *ensemble.members) if path]
    files = _Files(images, out, inputs)
    _check_options(**options)
    check_writable(out)
    predictor = Predictor(cfg, checkpoint, device, amp)
    facts = dict(
        config=cfg.filename and printable(cfg.filename),
        checkpoint=printable(checkpoint),
        checkpoints=[dict(file=printable(path), sha256=file_sha256(path)) for path in predictor.ensemble.members],
        device=str(next(predictor.model.parameters()).device),
        amp=amp,
    )
    return _run(predictor, files, facts, report, **options)


def predict_files(
    predictor: Predictor,
    paths: Sequence[str | Path],
    out: str | Path,
    report: Callable[[str], None] = print,
    um_per_px: float | None = None,
    palette: str = 'official',
    max_pixels: int = MAX_PIXELS,
) -> list[str]:
    """Predict images and folders of images; report an image that fails and continue with the others.

    Write ``STEM.png`` (raw ids 1..16), ``STEM_overlay.png`` and ``run.json`` to ``out``; see docs/prediction.md.

    Args:
        predictor: the model.
        paths: images, and folders whose visible images are predicted.
        out: output folder.
        report: called with a line of text for each image.
        um_per_px: resolution of all images, um/px. Defaults to None: what each file states, else the resolution of the
            training.
        palette: colours of the overlays, 'official' or 'colour-blind'.
        max_pixels: images with more pixels in their header are not decoded.

    Returns:
        One sentence for each image that could not be predicted.

    Raises:
        IgniteError: before anything is predicted: a path does not exist, a folder contains no image, an option is
            implausible, or outputs may not be written (see :func:`mmseg_ignite.files.check_outputs`). Afterwards:
            ``run.json`` cannot be written, e.g. because the disk is full.

    Example:
        >>> predict_files(Predictor(config, checkpoint), ['slides/'], 'predictions')
    """
    files = _Files(paths, out)
    _check_options(um_per_px, palette, max_pixels)
    check_writable(out)
    return _run(predictor, files, {}, report, um_per_px, palette, max_pixels)


class _Files:
    """The images to predict, with their output paths checked.

    Attributes:
        paths: images in order.
        out: output folder.
        faults: {path: why it cannot be predicted}.
    """

    def __init__(self, paths: Sequence[str | Path], out: str | Path, inputs: Sequence[str | Path] = ()) -> None:
        self.paths, self.out = list(dict.fromkeys(_expand(paths))), Path(out)
        self.faults: dict[Path, str] = {}
        taken: dict[Path, Path] = {}
        for path in self.paths:
            written = prediction_files(self.out, path.stem)
            clash = next((output for output in written if output in taken), None)
            if clash is None:
                taken.update(dict.fromkeys(written, path))
            else:
                self.faults[path] = (
                    f'{printable(path)} and {printable(taken[clash])} would both write {printable(clash.name)}: predict them '
                    'into two folders.'
                )
        check_outputs([*taken, self.out / RUN], [*self.paths, *inputs])


def _expand(paths: Sequence[str | Path]) -> list[Path]:
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = visible_files(path, SUFFIXES)
            if not inside:
                raise IgniteError(f'{printable(path)} contains no image ({", ".join(SUFFIXES)}): check the folder.')
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise IgniteError(f'{printable(path)} does not exist; an image or a folder was expected: check the path.')
    return found


def _check_options(um_per_px: float | None = None, palette: str = 'official', max_pixels: int = MAX_PIXELS) -> None:
    if um_per_px is not None:
        check_resolution(um_per_px)
    if palette not in PALETTES:
        raise IgniteError(f'the palette is {palette!r}; one of {", ".join(PALETTES)} was expected.')
    if max_pixels < 1:
        raise IgniteError(f'the limit of pixels is {max_pixels}; a number above 0 was expected.')


def _run(
    predictor: Predictor,
    files: _Files,
    facts: dict,
    report: Callable[[str], None],
    um_per_px: float | None = None,
    palette: str = 'official',
    max_pixels: int = MAX_PIXELS,
) -> list[str]:
    """Predict the files one by one and record each in ``run.json``, even if interrupted."""
    faults, entries, colours, total = [], [], PALETTES[palette], len(files.paths)
    try:
        for number, path in enumerate(files.paths, 1):
            line, entry, fault = '', {}, files.faults.get(path)
            if fault is None:
                line, entry, fault = _predict_file(predictor, path, files.out, um_per_px, colours, max_pixels)
            if fault is not None:
                faults.append(fault)
                entry = dict(file=printable(path), error=fault)
            entries.append(entry)
            report(f'[{number}/{total}] ' + (line if fault is None else f'skipped: {fault}'))
    finally:
        record = dict(
            package=f'mmseg_ignite {__version__}',
            **facts,
            training=dict(um_per_px=predictor.um_per_px, um_per_px_source=predictor.um_per_px_source),
            palette=palette,
            classes={name: number for number, name in enumerate(CLASSES, 1)},  # the raw ids of label PNGs
            images=entries,
        )
        with writing(files.out / RUN):
            write_result(files.out / RUN, record)
    if assumed := sum('um_per_px' in entry and entry['um_per_px'] is None for entry in entries):
        report(
            f'note: the resolution of {assumed} image(s) is not known; {predictor.um_per_px:.3g} um/px, as in training, was '
            'assumed: state theirs with --um-per-px.'
        )
    return faults


def _predict_file(
    predictor: Predictor, path: Path, out: Path, um_per_px: float | None, colours: Colours, max_pixels: int
) -> tuple[str, dict, str | None]:
    """Predict one file; return a line of text, its entry in run.json, and the fault if there is one."""
    name = printable(path)
    try:
        read = read_image(path, max_pixels)
        known, source = (um_per_px, 'option') if um_per_px else (read.um_per_px, read.resolution_source)
        size = predictor.working_size(read.pixels.shape[:2], known)
        with _WindowProgress(predictor.windows(size), path.name) as on_progress:
            labels = predictor.predict(read, known, on_progress)
        write_prediction(out, path.stem, read.pixels, labels, um_per_px=known, colours=colours)
    except IgniteError as error:
        text = str(error)
        return '', {}, text if name in text else f'{name}: {text}'
    except Exception as error:  # affects this file only: out of memory, an error of a decoder, ...
        text = (str(error) or 'no further details').splitlines()[0]
        kind = 'there is not enough memory' if _out_of_memory(error) else f'{type(error).__name__}: {text}'
        return '', {}, f'{name} cannot be predicted ({kind}): cut it into parts, or check the file.'
    entry = dict(
        file=name,
        labels=printable(f'{path.stem}.png'),
        height=read.pixels.shape[0],
        width=read.pixels.shape[1],
        um_per_px=known,
        um_per_px_source=source,
        predicted_height=size[0],
        predicted_width=size[1],
        resampled=size != read.pixels.shape[:2],
        transparent=read.transparent,
        fully_transparent=0.0 if read.blank is None else float(read.blank.mean()),
        orientation=read.orientation,
        pages=read.pages,
    )
    notes = '; '.join(_notes(predictor, read, entry))
    return f'{name} -> {printable(out / f"{path.stem}.png")}' + (f' ({notes})' if notes else ''), entry, None


def _out_of_memory(error: Exception) -> bool:
    """Return whether Python, CUDA or torch on a CPU (a RuntimeError) ran out of memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or 'not enough memory' in str(error)


def _notes(predictor: Predictor, read: ReadImage, entry: dict) -> list[str]:
    """Return what was changed or assumed about an image."""
    notes = []
    known, stated = entry['um_per_px'], read.um_per_px
    if known:
        where = 'as stated by --um-per-px' if entry['um_per_px_source'] == 'option' else entry['um_per_px_source']
        notes.append(f'{known:.3g} um/px, {where}')
        if stated and not 1 / TOLERANCE <= known / stated <= TOLERANCE:
            notes.append(f'the file states {stated:.3g} um/px')
    if entry['resampled']:
        notes.append(f'resampled to {predictor.um_per_px:.3g} um/px of the training')
    if read.transparent:
        blank = 100 * entry['fully_transparent']
        notes.append(f'{100 * read.transparent:.3g} % transparent, {blank:.3g} % fully and thus Background')
    if read.orientation != 1:
        notes.append(f'EXIF orientation {read.orientation} applied')
    if read.pages > 1:
        notes.append(f'page 1 of {read.pages}')
    return notes


class _WindowProgress:
    """A progress bar of windows on the terminal, for an image of several windows."""

    def __init__(self, windows: int, name: str) -> None:
        self.bar = Progress(
            TextColumn('{task.description}', markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('windows'),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=windows < 2 or not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task(printable(name), total=windows)

    def __enter__(self) -> Callable[[int], object]:
        self.bar.start()
        return lambda windows: self.bar.advance(self.task, windows)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
