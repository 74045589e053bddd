"""A trained model as a pixel classifier inside QuPath 0.6 or newer, without Python."""

from __future__ import annotations

import math
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ..errors import IgniteError
from ..files import write_json
from ..regions.qupath import check_classes, class_list
from .comparison import compare, example_inputs, windows_of
from .network import ExportNetwork
from .packages import Exported
from .qupath_classifier import (
    IGNORED,
    MODEL,
    PLACEHOLDER,
    class_names,
    qupath_classifier,
    qupath_classifier_faults,
    resolution_of,
    tile_padding,
    window_fault,
    window_of,
)
from .torchscript import torchscript_faults, torchscript_runner, write_torchscript

CLASSIFIER, CLASSES, SCRIPT, README, CARD = (
    *('pixel_classifier.json', 'classes.json', 'install.groovy'),
    *('README.md', 'MODEL_CARD.md'),
)
FILES = (CLASSIFIER, MODEL, CLASSES, SCRIPT, README, CARD)


def check(exported: Exported) -> None:
    """Raise IgniteError if QuPath could not run the model, or would change the names of its classes."""
    description = exported.description
    check_classes(description.classes, description.palette)
    if fault := window_fault(window_of(description)):
        raise IgniteError(
            f'{description.name} cannot become a pixel classifier of QuPath: {fault}: choose another window, e.g. with '
            '--cfg-options "model.test_cfg.crop_size=(512,512)".'
        )
    if not (math.isfinite(description.um_per_px) and description.um_per_px > 0):
        raise IgniteError(
            f'the resolution of {description.name} is {description.um_per_px} um/px; a number above 0 was expected: QuPath '
            'needs it to choose the level of the slide.'
        )


def write(folder: Path, exported: Exported) -> None:
    """Write the package into an empty folder, and compare the written network with the model.

    Raises:
        IgniteError: the network uses operators that QuPath's PyTorch does not have, or the file does not compute what the
            model computes.
    """
    description, window = exported.description, window_of(exported.description)
    content = qupath_classifier(description)
    network = ExportNetwork(exported.model, inputs='float', outputs='probabilities')
    path = folder / MODEL
    write_torchscript(network, path, window)
    if faults := qupath_classifier_faults(content) + torchscript_faults(path):
        raise IgniteError(
            f'the pixel classifier of {description.name} would not run in QuPath: {faults[0]}; correct the config.'
        )
    inputs = example_inputs(network, windows_of(exported.images, window), [(1, *window)] * 2)
    exported.report(f'qupath: {MODEL}: {compare(network, torchscript_runner(path), inputs, MODEL)}')
    write_json(folder / CLASSIFIER, content)
    write_json(folder / CLASSES, class_list(class_names(description), description.palette))
    (folder / CARD).write_text(exported.card, encoding='utf-8')
    facts = dict(
        description=description,
        um_per_px=resolution_of(description),
        window=window,
        padding=tile_padding(window),
        names=class_names(description),
        ignored=IGNORED if IGNORED in description.classes else None,
        placeholder=PLACEHOLDER,
        model=MODEL,
        model_bytes=path.stat().st_size,
        classifier=CLASSIFIER,
        classes=CLASSES,
        script=SCRIPT,
        card=CARD,
    )
    for name in (SCRIPT, README):
        (folder / name).write_text(_template(name).render(facts), encoding='utf-8')


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader(__package__), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    environment.filters['groovy'] = _groovy_text
    return environment.get_template(f'qupath_{name}.j2')


def _groovy_text(text: str) -> str:
    """Return a text as a literal of Groovy, in ASCII, which no editor or locale changes."""
    escaped = ''.join(c if ' ' <= c <= '~' and c not in "'\\" else f'\\u{ord(c):04x}' for c in text)
    return f"'{escaped}'"
