"""Converting files of weights between the names of mmseg, SegFormer's authors and Hugging Face."""

import os
from pathlib import Path

from ..engine.checkpoints import open_checkpoint, write_safetensors
from ..engine.checkpoints.remote import local_file
from ..engine.checkpoints.writing import save_tensors, write_checkpoint
from ..engine.encoder_weights import weights_file
from ..errors import IgniteError
from ..files import atomic_file, check_output_folder, printable, writing
from ..models.weight_names import LAYOUTS, convert

SUFFIXES = ('.pth', '.safetensors', '.bin')
"""Formats of the output: torch with the meta of the training, safetensors with it, torch with weights only."""
_REMEDY = 'choose another folder'


def convert_weights(source: str | Path, out: str | Path, to: str = 'mmseg', encoder_only: bool = False) -> list[str]:
    """Convert a MiT encoder or a SegFormer to other names of weights, or to another format of file.

    Args:
        source: ``.pth``, ``.bin`` or ``.safetensors`` file, an address, or a folder of Hugging Face.
        out: new file; its suffix says the format, see :data:`SUFFIXES`.
        to: names of the output, a key of :data:`mmseg_ignite.models.weight_names.LAYOUTS`.
        encoder_only: leave out the decode head.

    Returns:
        Lines that say what was found and written.

    Raises:
        IgniteError: the input is missing or damaged, or does not fit (see :func:`mmseg_ignite.models.weight_names.convert`),
            or the output exists, is the input or cannot be written.

    Example:
        >>> convert_weights('nvidia/mit-b0', 'mit_b0.pth')
        ['found: MiT-B0, encoder alone, names of Hugging Face', 'written: mit_b0.pth, names of mmseg']
    """
    if to not in LAYOUTS:
        raise IgniteError(f'the names are {to!r}; one of {", ".join(LAYOUTS)} was expected: correct it.')
    path, out = weights_file(local_file(source)), Path(out)
    _check_output(path, out)
    content = open_checkpoint(path)
    weights, found = convert(content.get('state_dict', content), to, path, encoder_only)
    meta = content.get('meta') if 'state_dict' in content else None
    lines = [f'found: {found}']
    if out.suffix.lower() == '.safetensors':
        write_safetensors(out, weights, meta)
    elif out.suffix.lower() == '.pth':
        write_checkpoint(dict(state_dict=weights, **({} if meta is None else dict(meta=meta))), out, _REMEDY)
    else:
        with writing(out, _REMEDY), atomic_file(out) as partial:
            save_tensors(weights, partial)
        if meta:
            lines.append(
                'left out: the record of its training, which a .bin file cannot hold; .safetensors and .pth can'
            )
    has_head = found.classes is not None
    what = ', encoder alone' if encoder_only and has_head else ''
    lines.append(f'written: {printable(out)}, names of {LAYOUTS[to]}{what}')
    if has_head and found.is_plain and not encoder_only and to == 'mmseg':
        lines.append('to load the whole model: FastSegformerHead with model.decode_head.plain=True')
    return lines


def _check_output(path: Path, out: Path) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise IgniteError(
            f'{printable(out)} ends with {out.suffix or "no suffix"!r}; one of {", ".join(SUFFIXES)} was expected: it says '
            'the format of the file.'
        )
    if os.path.lexists(out):
        if os.path.exists(path) and os.path.exists(out) and os.path.samefile(path, out):
            raise IgniteError(f'{printable(out)} is the input and is kept: choose another name for the output.')
        raise IgniteError(f'{printable(out)} exists and is kept: choose another name for the output, or move it away.')
    check_output_folder(out.parent)
