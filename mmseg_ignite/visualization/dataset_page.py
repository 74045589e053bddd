"""A self-contained HTML page about a data set: facts, table of classes, pictures."""

from base64 import b64encode
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ..labels import CLASSES
from .colours import class_colours
from .dataset_plots import SampledCrops, class_pixels, patients_of, percent


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
        title: heading.
        text: sentence under the heading.
        alt: text alternative for screen readers.
        content: bytes of the file, PNG or JPEG.
    """

    title: str
    text: str
    alt: str
    content: bytes

    @property
    def source(self) -> str:
        """Data URI of the picture."""
        kind = 'png' if self.content.startswith(b'\x89PNG') else 'jpeg'
        return f'data:image/{kind};base64,{b64encode(self.content).decode()}'


def html_environment(folder: Path) -> Environment:
    """Return a jinja2 environment of ``folder/templates``; ``static(name)`` inlines a file of ``folder/static``."""
    loader = FileSystemLoader(folder / 'templates')
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals['static'] = lambda name: Markup((folder / 'static' / name).read_text(encoding='utf-8'))
    return environment


def dataset_page(
    title: str,
    facts: dict[str, str],
    members: dict[str, list[dict]],
    crops: SampledCrops | None,
    pictures: list[Picture],
    notes: list[str],
) -> str:
    """Return the page as HTML.

    Args:
        title: heading.
        facts: name and value of each line above the table.
        members: {part: index entries of its ROIs}.
        crops: sampled training crops; None omits their columns.
        pictures: in order of appearance.
        notes: sentences under the table.
    """
    columns = ['class', *(f'pixels, {part}' for part in members), 'ROIs', 'patients']
    if crops is not None:
        columns += ['share in the training data', 'share in the sampled crops', 'crops that contain it']
    rows = _rows(members, crops)
    return html_environment(Path(__file__).parent).get_template('dataset.html.j2').render(
        title=title, facts=facts, columns=columns, rows=rows, pictures=pictures, notes=notes,
        absent=sum(not row['present'] for row in rows),
    )  # fmt: skip


def _rows(members: dict[str, list[dict]], crops: SampledCrops | None) -> list[dict]:
    """Return name, colour, cells and presence of each class."""
    rois = [r for part in members.values() for r in part]
    pixels = [class_pixels(part) for part in members.values()]
    rows = []
    for i, name in enumerate(CLASSES):
        holders = [r for r in rois if r['pixels'][i]]
        cells = [f'{p[i]:,}' for p in pixels] + [str(len(holders)), str(patients_of(holders))]
        if crops is not None:
            shares = (p[i] / max(1, p.sum()) for p in (crops.data_pixels, crops.pixels))
            cells += [percent(share) for share in (*shares, crops.holding[i] / crops.count)]
        rows.append(dict(name=name, colour=class_colours(name, i).official, cells=cells, present=bool(holders)))
    return rows
