"""Weights of MiT and SegFormer between the names of mmseg, of SegFormer's authors, and of Hugging Face's transformers.

mmseg (and this package), the authors (NVlabs/SegFormer, ``mit_b0.pth``) and transformers (``SegformerModel``,
``SegformerForSemanticSegmentation``) compute the same encoder, so encoders convert exactly. mmseg stores queries, keys and
values in one tensor, the authors keys and values in one, transformers each in its own. Linear layers of the others are
1 x 1 convolutions in mmseg. The decode head of the authors and of transformers has one linear layer at each level; mmseg's
has convolution, normalisation and ReLU, and a ReLU cannot be folded away. So whole models convert only with
:class:`FastSegformerHead(plain=True) <mmseg_ignite.models.FastSegformerHead>`. mmseg concatenates the levels from the finest
to the coarsest, the others the other way round.

All functions are pure: they return new dictionaries, whose tensors may share memory with those given. Their normal form has
mmseg's names with the prefixes ``backbone.`` and ``decode_head.``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import IgniteError
from ..files import printable

LAYOUTS = {'mmseg': 'mmseg', 'authors': "SegFormer's authors", 'huggingface': 'Hugging Face'}
"""Layouts of names, and whose they are."""
_SIZES = {
    (32, (2, 2, 2, 2)): 'MiT-B0',
    (64, (2, 2, 2, 2)): 'MiT-B1',
    (64, (3, 4, 6, 3)): 'MiT-B2',
    (64, (3, 4, 18, 3)): 'MiT-B3',
    (64, (3, 8, 27, 3)): 'MiT-B4',
    (64, (3, 6, 40, 3)): 'MiT-B5',
}
"""Sizes by channels of the first stage and blocks of each stage."""
_EMBED, _BLOCK, _NORM = 'backbone.layers.{s}.0', 'backbone.layers.{s}.1.{b}', 'backbone.layers.{s}.2'
_HF, _HF_BLOCK = 'segformer.encoder', 'segformer.encoder.block.{s}.{b}'
_TABLE = (
    (f'{_EMBED}.projection', 'backbone.patch_embed{n}.proj', f'{_HF}.patch_embeddings.{{s}}.proj'),
    (f'{_EMBED}.norm', 'backbone.patch_embed{n}.norm', f'{_HF}.patch_embeddings.{{s}}.layer_norm'),
    (_NORM, 'backbone.norm{n}', f'{_HF}.layer_norm.{{s}}'),
    *(
        (f'{_BLOCK}.{ours}', authors and f'backbone.block{{n}}.{{b}}.{authors}', theirs and f'{_HF_BLOCK}.{theirs}')
        for ours, authors, theirs in (
            ('norm1', 'norm1', 'layer_norm_1'),
            ('norm2', 'norm2', 'layer_norm_2'),
            ('attn.attn.in_proj_q', 'attn.q', 'attention.self.query'),
            ('attn.attn.in_proj_kv', 'attn.kv', None),
            ('attn.attn.in_proj_k', None, 'attention.self.key'),
            ('attn.attn.in_proj_v', None, 'attention.self.value'),
            ('attn.attn.out_proj', 'attn.proj', 'attention.output.dense'),
            ('attn.sr', 'attn.sr', 'attention.self.sr'),
            ('attn.norm', 'attn.norm', 'attention.self.layer_norm'),
            ('ffn.layers.0', 'mlp.fc1', 'mlp.dense1'),
            ('ffn.layers.1', 'mlp.dwconv.dwconv', 'mlp.dwconv.dwconv'),
            ('ffn.layers.4', 'mlp.fc2', 'mlp.dense2'),
        )
    ),
    ('decode_head.convs.{s}.conv', 'decode_head.linear_c{n}.proj', 'decode_head.linear_c.{s}.proj'),
    ('decode_head.fusion_conv.conv', 'decode_head.linear_fuse.conv', 'decode_head.linear_fuse'),
    ('decode_head.fusion_conv.bn', 'decode_head.linear_fuse.bn', 'decode_head.batch_norm'),
    ('decode_head.conv_seg', 'decode_head.linear_pred', 'decode_head.classifier'),
)
"""Layers in the names of mmseg, the authors and Hugging Face; {s} is the stage from 0, {n} from 1, {b} the block."""
_LINEAR = re.compile(r'backbone\..+\.ffn\.layers\.[04]\.weight|decode_head\.convs\.\d+\.conv\.weight')
_PARTS = {'authors': ('q', 'kv'), 'huggingface': ('q', 'k', 'v')}
_HEAD = 'decode_head.'
_FUSION = 'decode_head.fusion_conv.conv.weight'
_UNUSED = {
    'mmseg': r'(?!)',
    'authors': r'(backbone\.)?head\.(weight|bias)|decode_head\.conv_seg\.(weight|bias)',
    'huggingface': r'classifier\.(weight|bias)',
}
"""Classifiers of ImageNet, and a layer that the authors' code creates and does not use."""
_ENCODERS = {
    'mmseg': r'(backbone\.)?(layers\..+)',
    'authors': r'(backbone\.)?((?:patch_embed|block|norm)\d.+)',
    'huggingface': r'(segformer\.)?((?:encoder|stages)\..+)',
}
_PREFIXES = {'mmseg': 'backbone.', 'authors': 'backbone.', 'huggingface': 'segformer.'}
_NEW_NAMES = (
    (r'^segformer\.stages\.(\d+)\.patch_embeddings\.', r'segformer.encoder.patch_embeddings.\1.'),
    (r'^segformer\.stages\.(\d+)\.blocks\.', r'segformer.encoder.block.\1.'),
    (r'^segformer\.stages\.(\d+)\.layer_norm\.', r'segformer.encoder.layer_norm.\1.'),
    (r'\.attention\.q_proj\.', '.attention.self.query.'),
    (r'\.attention\.k_proj\.', '.attention.self.key.'),
    (r'\.attention\.v_proj\.', '.attention.self.value.'),
    (r'\.attention\.o_proj\.', '.attention.output.dense.'),
    (r'\.attention\.sequence_reduction\.sequence_reduction\.', '.attention.self.sr.'),
    (r'\.attention\.sequence_reduction\.layer_norm\.', '.attention.self.layer_norm.'),
    (r'\.mlp\.fc([12])\.', r'.mlp.dense\1.'),
    (r'\.layernorm_before\.', '.layer_norm_1.'),
    (r'\.layernorm_after\.', '.layer_norm_2.'),
    (r'^decode_head\.linear_projections\.', 'decode_head.linear_c.'),
)
"""Names in the code of transformers from 5.24 on, whose files keep the earlier names."""


def _patterns(column: int) -> list[tuple[re.Pattern, tuple]]:
    found = []
    for row in _TABLE:
        if row[column] is not None:
            pattern = re.escape(row[column]).replace(r'\{', '{').replace(r'\}', '}')
            for letter in 'snb':
                pattern = pattern.replace(f'{{{letter}}}', rf'(?P<{letter}>\d{{1,3}})')
            found.append((re.compile(rf'{pattern}\.(?P<kind>\w+)'), row))
    return found


_READERS = {layout: _patterns(column) for column, layout in enumerate(LAYOUTS)}


@dataclass(frozen=True)
class WeightsSummary:
    """What a state dict contains, also what a conversion left out.

    Attributes:
        layout: key of :data:`LAYOUTS`.
        widths: channels of each stage of the encoder.
        depths: blocks of each stage.
        classes: number of classes of the decode head; None for an encoder alone.
        is_plain: whether the decode head, if any, is that of the authors and of transformers.
    """

    layout: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    classes: int | None
    is_plain: bool

    @property
    def size(self) -> str:
        """Name of the MiT size, e.g. 'MiT-B0', or its widths and depths."""
        widths, depths = (', '.join(map(str, values)) for values in (self.widths, self.depths))
        return _SIZES.get((self.widths[0], self.depths), f'MiT with {widths} channels in {depths} blocks')

    def __str__(self) -> str:
        if self.classes is None:
            return f'{self.size}, encoder alone, names of {LAYOUTS[self.layout]}'
        head = 'plain head' if self.is_plain else 'head with normalisation at each level'
        return f'{self.size}, whole model, {self.classes} classes, {head}, names of {LAYOUTS[self.layout]}'


def layout_of(weights: dict[str, Tensor]) -> str | None:
    """Return the layout of a state dict by the name of its first layer, a key of :data:`LAYOUTS`; None if it has no MiT.

    Example:
        >>> layout_of(torch.load('mit_b0.pth'))
        'authors'
    """
    first = {
        'mmseg': r'(module\.)?(backbone\.)?layers\.0\.0\.projection\.weight',
        'authors': r'(module\.)?(backbone\.)?patch_embed1\.proj\.weight',
        'huggingface': r'(segformer\.)?(encoder\.patch_embeddings\.0|stages\.0\.patch_embeddings)\.proj\.weight',
    }
    return next((k for k, pattern in first.items() if any(re.fullmatch(pattern, str(name)) for name in weights)), None)


def convert(
    weights: dict[str, Tensor], layout: str, path: str | Path, encoder_only: bool = False
) -> tuple[dict[str, Tensor], WeightsSummary]:
    """Convert a MiT encoder or a SegFormer to another layout of names. Classifiers of ImageNet are dropped.

    Args:
        weights: state dict in any layout, with or without prefix.
        layout: key of :data:`LAYOUTS`. mmseg's own models stay as they are in 'mmseg', whatever their head.
        path: file of the weights, for the sentences.
        encoder_only: leave out the decode head and everything else.

    Returns:
        The state dict, and what was found. An encoder alone has no prefix, as in the files of each project: ``layers.``,
        ``patch_embed1.`` or ``encoder.``; a whole model has ``backbone.`` or ``segformer.``, and ``decode_head.``.

    Raises:
        IgniteError: the weights are of no known layout, or some do not fit (names, shapes), or the head cannot be converted.

    Example:
        >>> weights, found = convert(open_checkpoint('mit_b0.pth'), 'huggingface', 'mit_b0.pth')
        >>> found.size
        'MiT-B0'
    """
    source = layout_of(weights)
    if source is None:
        first = printable(str(next(iter(weights), 'none'))[:60])
        raise IgniteError(
            f'{printable(path)} has no weights of a MiT encoder (e.g. {first}); names of '
            f'{", ".join(LAYOUTS.values())} were expected: check the file.'
        )
    normal, wrong = _normal_form(weights, source, encoder_only)
    is_plain, has_head = _is_plain(normal), any(name.startswith(_HEAD) for name in normal)
    if source == layout == 'mmseg' and has_head and not is_plain:
        expected = _expected({name: value for name, value in normal.items() if name.startswith('backbone.')})
        wrong = [name for name in expected if not _has_shape(normal.get(name), expected[name])]
    elif has_head and not is_plain and source == 'mmseg' and 'decode_head.convs.0.conv.weight' in normal:
        raise IgniteError(
            f'{printable(path)} is a SegFormer whose head has convolution, normalisation and ReLU at each level, but the '
            f'head of {LAYOUTS[layout]} has one linear layer there, and a ReLU cannot be folded away: train with '
            'model.decode_head.plain=True, or convert the encoder alone (--encoder-only).'
        )
    else:
        expected = _expected(normal)
        wrong += [_name_in(name, source) for name in expected if not _has_shape(normal.get(name), expected[name])]
        wrong += [_name_in(name, source) for name in normal if name not in expected]
    if wrong:
        raise IgniteError(_misfit(path, source, wrong, has_head))
    return _from_normal(normal, layout), _summary(normal, weights, source)


def _misfit(path: str | Path, layout: str, wrong: list[str], has_head: bool) -> str:
    shown = printable(', '.join(wrong[:20])) + (f' and {len(wrong) - 20} more' if len(wrong) > 20 else '')
    what, remedy = 'a MiT encoder', 'use the file of a whole encoder'
    if has_head:
        what, remedy = 'a SegFormer', 'use the file of a whole model, or convert the encoder alone (--encoder-only)'
    return (
        f'{printable(path)} has the names of {LAYOUTS[layout]}, but {len(wrong)} weights are missing, unknown or of a shape '
        f'or type that does not fit {what}: {shown}; {remedy}.'
    )


def _normal_form(weights: dict[str, Tensor], layout: str, encoder_only: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights with mmseg's names and prefixes, and the names that are not known."""
    result: dict[str, Tensor] = {}
    unknown: list[str] = []
    for given, value in weights.items():
        name = str(given).removeprefix('module.')
        encoder = re.fullmatch(_ENCODERS[layout], name)
        if re.fullmatch(_UNUSED[layout], name) or (encoder_only and encoder is None):
            continue
        name = f'{_PREFIXES[layout]}{encoder[2]}' if encoder else name
        if layout == 'huggingface':
            for pattern, replacement in _NEW_NAMES:
                name = re.sub(pattern, replacement, name)
        own = name if layout == 'mmseg' else _renamed(name, layout, 'mmseg')
        if own is None or own in result or not isinstance(value, Tensor):
            unknown.append(str(given)[:120])
            continue
        result[own] = value[:, :, None, None] if _LINEAR.fullmatch(own) and value.ndim == 2 else value
    if layout != 'mmseg':
        _join(result, _PARTS[layout])
        _reverse_levels(result)
    if 'decode_head.fusion_conv.bn.weight' in result:
        result.setdefault('decode_head.fusion_conv.bn.num_batches_tracked', torch.tensor(0))
    return result, unknown


def _from_normal(weights: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Return weights in mmseg's names with the names and shapes of a layout."""
    result = dict(weights)
    if layout != 'mmseg':
        _reverse_levels(result)
        for name in [name for name in result if '.in_proj_' in name]:
            value, kind = result.pop(name), name.rpartition('_')[2]
            width = len(value) // 3
            sizes = (width, 2 * width) if layout == 'authors' else (width, width, width)
            for part, piece in zip(_PARTS[layout], value.split(sizes)):
                result[f'{name.removesuffix(kind)}{part}.{kind}'] = piece
        result = {
            _renamed(name, 'mmseg', layout): value.flatten(1) if _LINEAR.fullmatch(name) else value
            for name, value in result.items()
        }
    if any(name.startswith(_HEAD) for name in weights):
        return result
    return {name.removeprefix(_PREFIXES[layout]): value for name, value in result.items()}


def _renamed(name: str, source: str, target: str) -> str | None:
    """Return a name in another layout; None if it is not known there."""
    column = list(LAYOUTS).index(target)
    for pattern, row in _READERS[source]:
        if (found := pattern.fullmatch(name)) and row[column] is not None:
            numbers = {key: int(value) for key, value in found.groupdict().items() if key in 'snb'}
            stage = numbers.get('s', numbers.get('n', 1) - 1)
            return f'{row[column].format(s=stage, n=stage + 1, b=numbers.get("b"))}.{found["kind"]}'
    return None


def _name_in(name: str, layout: str) -> str:
    """Return one of mmseg's names as a layout has it, for the sentences."""
    parted = re.sub(r'\.in_proj_(weight|bias)$', r'.in_proj_q.\1', name)
    return name if layout == 'mmseg' else _renamed(parted, 'mmseg', layout) or name


def _join(weights: dict[str, Tensor], parts: tuple[str, ...]) -> None:
    """Concatenate queries, keys and values, in this order, where all are there and of one form."""
    for name in [name for name in weights if '.in_proj_q.' in name]:
        start, _, kind = name.rpartition('q.')
        names = [f'{start}{part}.{kind}' for part in parts]
        pieces = [weights.get(each) for each in names]
        if all(piece is not None and _joins(piece, pieces[0]) for piece in pieces):
            for each in names:
                del weights[each]
            weights[f'{start}{kind}'] = torch.cat(pieces)


def _joins(piece: Tensor, first: Tensor) -> bool:
    return bool(piece.ndim) and piece.shape[1:] == first.shape[1:] and piece.dtype == first.dtype


def _reverse_levels(weights: dict[str, Tensor]) -> None:
    """Turn the order of the levels in the weight of the fusion around."""
    levels = sum(name.startswith('decode_head.convs.') and name.endswith('.weight') for name in weights)
    fusion = weights.get(_FUSION)
    if levels and fusion is not None and fusion.ndim > 1 and fusion.shape[1] % levels == 0 and fusion.shape[1]:
        weights[_FUSION] = torch.cat(fusion.chunk(levels, 1)[::-1], 1)


def _has_shape(value: Tensor | None, shape: tuple[int, ...]) -> bool:
    return value is not None and tuple(value.shape) == shape and value.is_floating_point() == (shape != ())


def _depths(weights: dict[str, Tensor]) -> list[int]:
    """Return the number of blocks of each stage."""
    blocks: dict[int, set[str]] = {}
    for name in weights:
        if found := re.match(r'backbone\.layers\.(\d{1,3})\.(?:1\.(\d{1,3}))?', name):
            blocks.setdefault(int(found[1]), set()).add(found[2])
    return [len(blocks.get(stage, set()) - {None}) for stage in range(len(blocks))]


def _expected(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the encoder, and plain head if there is one, whose sizes are those of some weights."""
    return dict(_encoder_shapes(weights)) | dict(_head_shapes(weights))


def _shape(weights: dict[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    value = weights.get(name)
    return tuple(value.shape) if value is not None and value.ndim == ndim else (-1,) * ndim


def _encoder_shapes(weights: dict[str, Tensor]) -> Iterator[tuple[str, tuple[int, ...]]]:
    channels = None
    for s, depth in enumerate(_depths(weights)):
        stage = f'backbone.layers.{s}'
        width, before, size, _ = _shape(weights, f'{stage}.0.projection.weight', 4)
        yield f'{stage}.0.projection.weight', (width, before if channels is None else channels, size, size)
        yield f'{stage}.0.projection.bias', (width,)
        layers = [f'{stage}.0.norm', f'{stage}.2']
        for b in range(depth):
            block = f'{stage}.1.{b}'
            hidden = _shape(weights, f'{block}.ffn.layers.0.weight', 4)[0]
            layers += [f'{block}.norm1', f'{block}.norm2']
            shapes = {
                'attn.attn.in_proj_': (3 * width, width),
                'attn.attn.out_proj.': (width, width),
                'ffn.layers.0.': (hidden, width, 1, 1),
                'ffn.layers.1.': (hidden, 1, 3, 3),
                'ffn.layers.4.': (width, hidden, 1, 1),
            }
            if any(name in weights for name in (f'{block}.attn.sr.weight', f'{block}.attn.norm.weight')):
                ratio = _shape(weights, f'{block}.attn.sr.weight', 4)[2]
                shapes['attn.sr.'] = (width, width, ratio, ratio)
                layers.append(f'{block}.attn.norm')
            for name, shape in shapes.items():
                yield f'{block}.{name}weight', shape
                yield f'{block}.{name}bias', shape[:1]
        for layer in layers:
            yield f'{layer}.weight', (width,)
            yield f'{layer}.bias', (width,)
        channels = width


def _head_shapes(weights: dict[str, Tensor]) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not any(name.startswith(_HEAD) for name in weights):
        return
    stages = len(_depths(weights))
    channels = _shape(weights, _FUSION, 4)[0]
    classes = _shape(weights, 'decode_head.conv_seg.weight', 4)[0]
    for s in range(stages):
        width = _shape(weights, f'backbone.layers.{s}.0.projection.weight', 4)[0]
        yield f'decode_head.convs.{s}.conv.weight', (channels, width, 1, 1)
        yield f'decode_head.convs.{s}.conv.bias', (channels,)
    yield _FUSION, (channels, stages * channels, 1, 1)
    for kind in ('weight', 'bias', 'running_mean', 'running_var'):
        yield f'decode_head.fusion_conv.bn.{kind}', (channels,)
    yield 'decode_head.fusion_conv.bn.num_batches_tracked', ()
    yield 'decode_head.conv_seg.weight', (classes, channels, 1, 1)
    yield 'decode_head.conv_seg.bias', (classes,)


def _summary(normal: dict[str, Tensor], weights: dict[str, Tensor], layout: str) -> WeightsSummary:
    """Describe a file by its encoder in normal form and by its own names of the head."""
    depths = tuple(_depths(normal))
    widths = tuple(len(normal[f'backbone.layers.{s}.0.projection.weight']) for s in range(len(depths)))
    head = {
        name: value for key, value in weights.items() if (name := str(key).removeprefix('module.')).startswith(_HEAD)
    }
    found = head.get(_HEAD + {'mmseg': 'conv_seg', 'authors': 'linear_pred'}.get(layout, 'classifier') + '.weight')
    classes = len(found) if isinstance(found, Tensor) and found.ndim else 0
    return WeightsSummary(layout, widths, depths, classes if head else None, layout != 'mmseg' or _is_plain(head))


def _is_plain(weights: dict[str, Tensor]) -> bool:
    return f'{_HEAD}convs.0.conv.bias' in weights and f'{_HEAD}fusion_conv.bn.weight' in weights
