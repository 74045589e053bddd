"""Write ``slides.html``: predicted slides with their labels, areas and ratios, to zoom into in a browser."""

import hashlib
import math
import os
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from jinja2 import Template
from markupsafe import Markup

from ..errors import IgniteError
from ..files import printable, result_file, writing
from ..labels import CLASSES
from ..visualization.colours import class_colours
from ..visualization.dataset_page import html_environment
from .deep_zoom import read_deep_zoom
from .translations import CLASS_NAMES, LANGUAGES, TEXTS, both, class_name

PAGE = 'slides.html'
_LIBRARY = 'openseadragon/openseadragon.min.js'


class SlideEntry(NamedTuple):
    """A predicted slide or image to show.

    Example:
        >>> areas = [{'class': 'Stroma', 'mm2': 12.5, 'share': 0.41}]
        >>> ratios = [{'name': 'Tumor-stroma ratio', 'value': 0.8, 'formula': 'tumor / (tumor + stroma)'}]
        >>> entry = SlideEntry('slide1', 'out/slide1_tiles', areas, ratios, ['3 missing tiles were read as white.'])
    """

    name: str  # e.g. the file name
    tiles: str | os.PathLike  # folder of write_deep_zoom, inside the folder of the page
    areas: Sequence[Mapping]  # 'class' (name), 'mm2' (None if unknown), 'share' of the tissue, 0..1 or None
    ratios: Sequence[
        Mapping
    ] = ()  # 'name' (a text, or a key of the translations), 'value' or None, 'formula' (optional)
    notes: Sequence[str] = ()  # sentences


def write_slides_page(out: str | os.PathLike, entries: Iterable[SlideEntry], language: str = 'en') -> Path:
    """Write ``out/slides.html``, whole or not at all; an earlier one is replaced. Equal input gives equal bytes.

    The page needs only the folders of tiles beside it. It loads nothing from the network, and works by double click as well
    as over HTTP.

    Args:
        out: Folder of the results.
        entries: Slides in the order of the page.
        language: 'en' or 'ko', the language at first; the reader can switch.

    Returns:
        The path of the page.

    Raises:
        IgniteError: the language is unknown, tiles are missing or lie outside ``out``, or the page cannot be written or is
            foreign.

    Example:
        >>> write_slides_page('out', [entry])
    """
    if language not in LANGUAGES:
        raise IgniteError(f'the language of the page is {language!r}; one of {", ".join(LANGUAGES)} was expected.')
    path = Path(out) / PAGE
    slides = [_slide(path.parent, entry) for entry in entries]
    classes = [dict(id=i, name=name, colours=class_colours(name, i)) for i, name in enumerate(CLASSES)]
    names = [dict(en=c['name'], ko=CLASS_NAMES[c['name']], **c['colours']._asdict()) for c in classes]
    data = dict(classes=names, texts=dict(TEXTS, title=TEXTS['slides_title']), slides=slides)
    page = _template().render(language=language, classes=classes, slides=slides, data=data)
    with writing(path), result_file(path) as partial:
        partial.write_text(page, encoding='utf-8', errors='backslashreplace')
    return path


def _template() -> Template:
    """Return the template; its policy allows the scripts of the page by checksum, and tiles that lie beside the page."""
    environment = html_environment(Path(__file__).parent)
    static = environment.globals['static']
    library = Markup('/*\n{}*/\n{}').format(
        static('openseadragon/LICENSE.txt'), static(_LIBRARY).rsplit('//# sourceMappingURL', 1)[0]
    )
    scripts = [static('report.js'), library, static('slides.js')]
    hashes = ['sha256-' + b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    environment.globals.update(t=both, class_name=class_name, scripts=scripts, hashes=hashes)
    return environment.get_template('slides.html.j2')


def _slide(out: Path, entry: SlideEntry) -> dict:
    """Return what the page needs of a slide."""
    found = read_deep_zoom(entry.tiles)
    folder = os.path.relpath(os.path.realpath(entry.tiles), os.path.realpath(out))
    if folder.split(os.sep)[0] in ('..', '.'):
        raise IgniteError(
            f'{printable(entry.tiles)} is not inside {printable(out)}, so {PAGE} could not show it: write the tiles there.'
        )
    return dict(
        name=printable(entry.name),
        folder=quote(os.fsencode(folder).replace(os.fsencode(os.sep), b'/')),
        **{key: found[key] for key in ('size', 'um_per_px', 'tile', 'slide', 'labels')},
        areas=[_area(entry, row) for row in entry.areas],
        ratios=[
            dict(name=row['name'], value=_finite(row['value']), formula=row.get('formula')) for row in entry.ratios
        ],
        notes=[printable(note) for note in entry.notes],
    )


def _area(entry: SlideEntry, row: Mapping) -> dict:
    if row['class'] not in CLASSES:
        raise IgniteError(
            f'the areas of {printable(entry.name)} name the class {row["class"]!r}, which is not in IGNITE.'
        )
    return dict(id=CLASSES.index(row['class']), mm2=_finite(row.get('mm2')), share=_finite(row.get('share')))


def _finite(value: float | None) -> float | None:
    """Return a number that JSON can hold, else None."""
    return float(value) if value is not None and math.isfinite(value) else None
