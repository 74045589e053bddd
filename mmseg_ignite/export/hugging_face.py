"""Folders that Hugging Face's transformers opens with ``from_pretrained``: config, weights, preprocessing, model card.

An encoder is a ``SegformerModel``. A whole model is a ``SegformerForSemanticSegmentation`` if its head is that of
transformers (:class:`FastSegformerHead(plain=True) <mmseg_ignite.models.FastSegformerHead>`), else the encoder alone is
written. transformers normalises layers with an epsilon of 1e-5 whatever the config says, mmseg with 1e-6, so outputs agree
to about 1e-5 of their size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from mmseg.models.backbones import MixVisionTransformer
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..engine.checkpoints import open_checkpoint, write_safetensors
from ..errors import IgniteError
from ..files import printable, writing
from ..models.weight_names import convert
from .model_card import model_card

if TYPE_CHECKING:
    from .description import ModelDescription
    from .packages import Exported

CONFIG, WEIGHTS, PREPROCESSING, CARD = 'config.json', 'model.safetensors', 'preprocessor_config.json', 'README.md'
FILES = (CONFIG, WEIGHTS, PREPROCESSING, CARD)
_USE = """
## Use
FOLDER is the folder of this file, or its name on the Hub:

    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, {0}
    processor, model = AutoImageProcessor.from_pretrained('FOLDER'), {0}.from_pretrained('FOLDER').eval()
    image = Image.open('roi.png').convert('RGB')
    with torch.inference_mode():
        outputs = model(**processor(image, return_tensors='pt'){1})
    {2}
"""
_ENCODER = (
    'SegformerModel',
    ', output_hidden_states=True',
    'features = outputs.hidden_states  # of 4 stages, at 1/4, 1/8, 1/16 and 1/32 of the size',
)
_WHOLE = (
    'SegformerForSemanticSegmentation',
    '',
    'labels = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])[0]',
)


def check(exported: Exported) -> None:
    """Raise IgniteError if not even the encoder can be written."""
    _weights(exported.model)


def write(folder: Path, exported: Exported) -> None:
    """Write a folder, see :func:`write_hugging_face`."""
    encoder_only = _other_head(exported.model) is not None
    card = model_card(exported.description, exported.scores, front_matter=True, encoder_only=encoder_only)
    card += _USE.format(*_ENCODER if encoder_only else _WHOLE)
    for line in write_hugging_face(folder, exported.model, exported.description, card):
        exported.report(f'huggingface: {line}')


def write_hugging_face(folder: Path, model: EncoderDecoder, description: ModelDescription, card: str) -> list[str]:
    """Write a trained model for transformers, and compare the written weights with the model bit by bit.

    The names of patients in the checkpoint are left out, since such folders are published.

    Args:
        folder: empty folder, or new.
        model: segmentor with its weights.
        description: classes, palette, um/px, channel order, mean and standard deviation (0..255), window.
        card: text of README.md.

    Returns:
        Lines that say what was written and, if the decode head is left out, why.

    Raises:
        IgniteError: the encoder is not a MiT of transformers, the model is an ensemble, or the folder has such files or
            cannot be written.

    Example:
        >>> write_hugging_face(Path('b0-lung'), predictor.model, description, card)
        ['SegformerForSemanticSegmentation: MiT-B0, 16 classes']
        >>> transformers.SegformerForSemanticSegmentation.from_pretrained('b0-lung')
    """
    folder = Path(folder)
    if found := [name for name in FILES if (folder / name).exists()]:
        raise IgniteError(f'{printable(folder)} has {found[0]} already and is kept: choose a new or empty folder.')
    weights, size = _weights(model)
    reason = _other_head(model)
    order = description.channel_order
    if order == 'BGR':  # transformers gives RGB
        name = next(name for name in weights if name.endswith('patch_embeddings.0.proj.weight'))
        weights[name] = weights[name].flip(1)
    mean, std = (values[:: -1 if order == 'BGR' else 1] for values in (description.mean, description.std))
    config = _config(model, description, reason is None)
    texts = {
        CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + '\n',
        PREPROCESSING: json.dumps(_preprocessing(mean, std, description.window), indent=2) + '\n',
        CARD: card,
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding='utf-8')
    write_safetensors(folder / WEIGHTS, weights)
    _compare(folder / WEIGHTS, model, whole=reason is None, flipped=order == 'BGR')
    kind = config['architectures'][0]
    what = 'encoder alone' if reason else f'{len(description.classes)} classes'
    return [f'{kind}: {size}, {what}', *([f'the decode head is left out: {reason}.'] if reason else [])]


def _weights(model: EncoderDecoder) -> tuple[dict[str, Tensor], str]:
    """Return the weights with Hugging Face's names, of the whole model or the encoder alone, and the MiT size."""
    backbone = model.backbone
    name = type(backbone).__name__
    if len(getattr(model, 'members', [model])) > 1:
        raise IgniteError('the model is an ensemble, but transformers holds one network: export a single checkpoint.')
    if not isinstance(backbone, MixVisionTransformer) or getattr(model, 'with_neck', False):
        raise IgniteError(
            f'the encoder is a {name}, but transformers has MiT only for SegFormer: export another format.'
        )
    if tuple(backbone.out_indices) != tuple(range(backbone.num_stages)):
        raise IgniteError(
            f'the encoder gives the stages {backbone.out_indices}; transformers gives all: set out_indices.'
        )
    first = backbone.layers[0][1][0]
    if type(first.ffn.layers[2]) is not nn.GELU or not isinstance(first.norm1, nn.LayerNorm):
        raise IgniteError('the encoder has other activations or normalisations than MiT: export another format.')
    own = {name: value for name, value in model.state_dict().items() if name.startswith(('backbone.', 'decode_head.'))}
    weights, found = convert(own, 'huggingface', 'the model', _other_head(model) is not None)
    return weights, found.size


def _other_head(model: EncoderDecoder) -> str | None:
    """Return why the decode head is not that of transformers; None if it is."""
    head = model.decode_head
    if not getattr(head, 'plain', False):
        return (
            f"transformers' head has one linear layer at each level, this {type(head).__name__} has more, and a ReLU cannot "
            'be folded away: train with model.decode_head.plain=True to export the whole model'
        )
    norm = head.fusion_conv.norm if head.fusion_conv.with_norm else None
    settings = (head.interpolate_mode, bool(head.align_corners), tuple(head.in_index))
    is_usual = settings == ('bilinear', False, tuple(range(model.backbone.num_stages)))
    is_usual &= isinstance(norm, _BatchNorm) and norm.eps == 1e-5 and type(head.fusion_conv.activate) is nn.ReLU
    return None if is_usual else "its settings (interpolation, levels, normalisation, activation) are not transformers'"


def _config(model: EncoderDecoder, description: ModelDescription, whole: bool) -> dict:
    """Return the fields of transformers' SegformerConfig, and under ``mmseg_ignite`` what it has no field for."""
    backbone, head = model.backbone, model.decode_head
    blocks = [stage[1][0] for stage in backbone.layers]
    last = backbone.layers[-1][1][-1]
    config: dict = dict(
        architectures=['SegformerForSemanticSegmentation' if whole else 'SegformerModel'],
        model_type='segformer',
        torch_dtype=str(next(model.parameters()).dtype).removeprefix('torch.'),
        num_channels=backbone.layers[0][0].projection.in_channels,
        num_encoder_blocks=backbone.num_stages,
        depths=[len(stage[1]) for stage in backbone.layers],
        sr_ratios=list(backbone.sr_ratios),
        hidden_sizes=[block.attn.attn.embed_dim for block in blocks],
        patch_sizes=list(backbone.patch_sizes),
        strides=list(backbone.strides),
        num_attention_heads=list(backbone.num_heads),
        mlp_ratios=[block.ffn.layers[0].out_channels // block.attn.attn.embed_dim for block in blocks],
        hidden_act='gelu',
        hidden_dropout_prob=float(getattr(last.ffn.layers[3], 'p', 0.0)),
        attention_probs_dropout_prob=float(last.attn.attn.dropout),
        drop_path_rate=float(getattr(last.attn.dropout_layer, 'drop_prob', 0.0) or 0.0),
        layer_norm_eps=blocks[0].norm1.eps,
        reshape_last_stage=True,
        mmseg_ignite=dict(
            name=description.name,
            um_per_px=description.um_per_px,
            window=None if description.window is None else list(description.window),
        ),
    )
    if whole:
        config['mmseg_ignite']['palette'] = [list(colour) for colour in description.palette]
        if len(description.classes) != head.out_channels:
            raise IgniteError(
                f'the model has {head.out_channels} output channels, but {len(description.classes)} classes are named; as '
                'many were expected: correct the class names of the config.'
            )
        config |= dict(
            decoder_hidden_size=head.channels,
            classifier_dropout_prob=float(head.dropout_ratio),
            semantic_loss_ignore_index=head.ignore_index,
            id2label={str(number): name for number, name in enumerate(description.classes)},
            label2id={name: number for number, name in enumerate(description.classes)},
        )
    return config


def _preprocessing(mean: tuple, std: tuple, window: tuple[int, int] | None) -> dict:
    """Return the settings of transformers' SegformerImageProcessor: scaled to 0..1, normalised, not resized."""
    height, width = window or (512, 512)
    return dict(
        image_processor_type='SegformerImageProcessor',
        do_resize=False,
        size=dict(height=height, width=width),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[round(value / 255, 9) for value in mean],
        image_std=[round(value / 255, 9) for value in std],
        do_reduce_labels=False,
    )


def _compare(path: Path, model: EncoderDecoder, whole: bool, flipped: bool) -> None:
    """Read what was written, convert it back and compare it with the model bit by bit."""
    found, _ = convert(open_checkpoint(path)['state_dict'], 'mmseg', path)
    parts = ('backbone.', 'decode_head.') if whole else ('backbone.',)
    own = {name: value.cpu() for name, value in model.state_dict().items() if name.startswith(parts)}
    own = own if whole else {name.removeprefix('backbone.'): value for name, value in own.items()}
    if flipped:
        first = f'{"backbone." if whole else ""}layers.0.0.projection.weight'
        own[first] = own[first].flip(1)
    if found.keys() != own.keys() or not all(torch.equal(found[name], own[name]) for name in own):
        raise IgniteError(f'{printable(path)} does not have the weights of the model after writing: write it again.')
