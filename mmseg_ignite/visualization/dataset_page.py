"""One HTML file that shows a data set: figures, tables and pictures in it, nothing loaded from elsewhere."""

from base64 import b64encode
from html import escape
from typing import NamedTuple

import numpy as np

from ..labels import CLASSES, PALETTE
from .dataset_plots import Draws, class_pixels, percent

_STYLE = """
body { margin: 0 auto; max-width: 1500px; padding: 1rem 2rem 4rem; font: 16px/1.5 system-ui, sans-serif; color: #222;
  background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child { text-align: left; } tbody th { font-weight: normal; white-space: nowrap; }
thead th { vertical-align: bottom; }
.swatch { display: inline-block; width: 1em; height: 1em; margin-right: .6em; border: 1px solid #333;
  vertical-align: -.15em; }
figure { margin: 1rem 0 2rem; } img { max-width: 100%; height: auto; } figcaption { max-width: 65rem; margin-bottom: .8rem; }
.wide { overflow-x: auto; background: linear-gradient(to right, #fff 30%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, #fff 30%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, #0003, transparent) left / .9rem 100% no-repeat scroll,
  linear-gradient(to left, #0003, transparent) right / .9rem 100% no-repeat scroll; }
#absent:not(:checked) ~ .wide .gone { display: none; }
@media (max-width: 700px) {
  body { padding: 1rem 1rem 3rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; }
}
"""


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
        title: its heading.
        text: the sentence under the heading.
        alt: what it shows, for those who do not see it.
        content: the file's bytes, PNG or JPEG.
    """

    title: str
    text: str
    alt: str
    content: bytes


def dataset_page(
    title: str,
    facts: dict[str, str],
    members: dict[str, list[dict]],
    draws: Draws | None,
    pictures: list[Picture],
    notes: list[str],
) -> str:
    """The page as HTML.

    Args:
        title: its heading.
        facts: name and value of each line above the table.
        members: {part: index entries of its ROIs}.
        draws: of the training stream; None leaves its columns out.
        pictures: in their order.
        notes: sentences under the table.
    """
    lines = ''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>\n' for k, v in facts.items())
    remarks = ''.join(f'<p>{escape(note)}</p>\n' for note in notes)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light">\n'
        f'<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n'
        f'<dl>\n{lines}</dl>\n<h2>Classes</h2>\n{_table(members, draws)}{remarks}'
        f'{"".join(map(_figure, pictures))}</body>\n</html>\n'
    )


def _figure(picture: Picture) -> str:
    kind = 'png' if picture.content.startswith(b'\x89PNG') else 'jpeg'
    source = f'data:image/{kind};base64,{b64encode(picture.content).decode()}'
    return (
        f'<h2>{escape(picture.title)}</h2>\n<figure><figcaption>{escape(picture.text)}</figcaption>\n'
        f'<img alt="{escape(picture.alt)}" src="{source}"></figure>\n'
    )


def _table(members: dict[str, list[dict]], draws: Draws | None) -> str:
    rois = [r for part in members.values() for r in part]
    pixels = [class_pixels(part) for part in members.values()]
    held = np.sum(pixels, axis=0) > 0
    head = ['class', *(f'pixels, {part}' for part in members), 'ROIs', 'patients']
    if draws is not None:
        head += ['share in the training data', 'share in the drawn crops', 'crops that hold it']
    rows = ''
    for i, (name, colour) in enumerate(zip(CLASSES, PALETTE)):
        holders = [r for r in rois if r['pixels'][i]]
        cells = [f'{p[i]:,}' for p in pixels] + [str(len(holders)), str(len({r['patient'] for r in holders}))]
        if draws is not None:
            shares = (p[i] / max(1, p.sum()) for p in (draws.data_pixels, draws.pixels))
            cells += [percent(share) for share in (*shares, draws.holding[i] / draws.count)]
        gone = '' if held[i] else ' class="gone"'
        swatch = f'<span class="swatch" style="background: rgb{colour}"></span>'
        rows += f'<tr{gone}><th scope="row">{swatch}{escape(name)}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>\n'
    columns = ''.join(f'<th scope="col">{escape(text)}</th>' for text in head)
    absent = len(CLASSES) - int(held.sum())
    switch = f'<input type="checkbox" id="absent"> <label for="absent">show absent classes ({absent})</label>\n' * (
        absent > 0
    )
    return f'{switch}<div class="wide"><table>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n'
