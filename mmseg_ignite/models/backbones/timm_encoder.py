"""Encoders of timm: pathology foundation models and other vision transformers, and CNNs."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from mmseg.registry import MODELS
from torch import Tensor, nn

from ...errors import IgniteError, require
from ...extras import import_extra
from .timm_weights import fitting_encoder

_LEVELS = 4
_TOLERANCE = 0.5
"""Largest difference between the statistics of a config and of an encoder, of 255."""


@MODELS.register_module()
class TimmEncoder(BaseModule):
    """Any encoder of timm as backbone of mmseg's heads; a plain vision transformer with an adapter.

    A CNN or a hierarchical transformer (ResNet, ConvNeXt, Swin, ...) gives the maps of its stages. A plain vision transformer
    (ViT, DINOv2, EVA, ...: UNI2-h, H-optimus, Virchow2, Hibou) gives normalised tokens of several depths, all at the stride
    of its patches; ``adapter`` makes a pyramid of them, see :class:`SpatialAdapter <mmseg_ignite.models.SpatialAdapter>`.

    Images of any size: they are extended at the bottom and the right to a multiple of the patch size (or of the largest
    stride) by repeating their last pixels, and the maps are cropped, so that a window of 512 px fits patches of 14 px.

    Nothing is downloaded: ``init_cfg = dict(type='Pretrained', checkpoint=FILE)`` names a local file, see
    :func:`.timm_weights.fitting_encoder` for the names that it may have.

    Args:
        model_name: Architecture in timm, e.g. 'vit_giant_patch14_reg4_dinov2'; no address of a hub.
        model_args: Arguments of ``timm.create_model``. Layers may be given by name, e.g. ``mlp_layer='SwiGLUPacked'``, and
            ``pretrained_cfg_overlay=dict(mean=..., std=...)`` has the statistics of the weights where timm does not know
            them. ``dynamic_img_size`` is True by default where it is supported.
        out_indices: Blocks or stages whose maps are returned, from 0; negative numbers count from the end. Defaults to four
            blocks at equal distances, the last among them, or the last four stages.
        adapter: Config of a SpatialAdapter; None for the encoder's own maps.
        frozen: The encoder is not trained: no gradients, evaluation mode, not in the optimizer. The adapter is trained.
        with_cp: Compute blocks again in the backward pass, which saves memory; without effect if frozen.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)``; None for random weights.

    Attributes:
        strides: of the maps without adapter, px.
        channels: of the maps returned.
        mean, std: statistics of the encoder, RGB in 0..1.

    Raises:
        IgniteError: timm is not installed, does not know the model, or the model or an argument cannot be used.

    Example:
        In a config: ``backbone=dict(type='TimmEncoder', model_name='vit_base_patch14_reg4_dinov2', frozen=True,
        model_args=dict(img_size=224), adapter=dict(type='SpatialAdapter'))``.

        >>> [tuple(m.shape) for m in TimmEncoder('resnet18')(torch.rand(1, 3, 512, 512))]
        [(1, 64, 128, 128), (1, 128, 64, 64), (1, 256, 32, 32), (1, 512, 16, 16)]
    """

    def __init__(
        self,
        model_name: str,
        model_args: Mapping | None = None,
        out_indices: Sequence[int] | None = None,
        adapter: dict | None = None,
        frozen: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        probe = _create(model_name, dict(model_args or {}), meta=True)  # to learn what it is, without memory
        create = partial(_create, model_name, dict(model_args or {}), fast=frozen)
        features = _features(probe)
        strides = [feature['reduction'] for feature in features]
        self.is_plain = len(set(strides)) == 1 and hasattr(probe, 'forward_intermediates')
        indices = _indices(out_indices, len(features), self.is_plain)
        if self.is_plain:
            dynamic = hasattr(probe, 'dynamic_img_size') and 'dynamic_img_size' not in (model_args or {})
            self.model = create(**(dict(dynamic_img_size=True) if dynamic else {}))
            self.model.prune_intermediate_layers(sorted(set(indices)), prune_norm=False, prune_head=True)
        else:
            self.model = create(features_only=True, out_indices=sorted(set(indices)))
        self.model_name, self.out_indices, self.frozen = model_name, indices, frozen
        self.strides = [strides[index] for index in indices]
        self.channels = [features[index]['num_chs'] for index in indices]
        self.mean, self.std = (tuple(probe.pretrained_cfg[name]) for name in ('mean', 'std'))
        self.adapter = self._adapter(adapter)
        if frozen:
            self.model.requires_grad_(False)
        elif with_cp:
            self.model.set_grad_checkpointing(True)
        self.train()

    def _adapter(self, adapter: dict | None) -> nn.Module | None:
        if adapter is None:
            return None
        if not self.is_plain or len(self.channels) != _LEVELS:
            kind = f'{len(self.channels)} maps' if self.is_plain else 'a pyramid of its own'
            raise IgniteError(
                f'{self.model_name} has {kind}, and an adapter is for a plain vision transformer with {_LEVELS} maps: set '
                f'model.backbone.{"out_indices to four blocks" if self.is_plain else "adapter=None"}.'
            )
        built = MODELS.build(adapter, default_args=dict(in_channels=self.channels, patch_size=self.strides[0]))
        self.channels = list(built.channels)
        return built

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode images (N, 3, H, W) of any size as maps (N, channels[i], ceil(H / stride), ceil(W / stride)).

        The strides are 4, 8, 16, 32 with an adapter, else ``strides``.
        """
        with torch.no_grad() if self.frozen else nullcontext():
            maps = self._encode(x)
        return maps if self.adapter is None else self.adapter(x, maps)

    def _encode(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[2:]
        multiple = max(self.strides)
        x = _extended(x, -height % multiple, -width % multiple)
        kept = sorted(set(self.out_indices))
        try:
            if self.is_plain:
                maps = self.model.forward_intermediates(x, indices=kept, norm=True, intermediates_only=True)
            else:
                maps = self.model(x)
        except AssertionError as error:  # of a model for one size
            raise IgniteError(
                f'{self.model_name} cannot encode images of {x.shape[2]} x {x.shape[3]} px ({error}): set img_size in '
                'model_args of the backbone to the size of crops and windows, or choose an encoder for any size.'
            ) from error
        if str(getattr(self.model, 'output_fmt', 'NCHW')).endswith('NHWC'):
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        maps = [maps[kept.index(index)] for index in self.out_indices]
        sizes = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
        return [m[..., : size[0], : size[1]] for m, size in zip(maps, sizes)]

    def train(self, mode: bool = True) -> 'TimmEncoder':
        """Set the mode of the adapter and, unless it is frozen, of the encoder."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def init_weights(self) -> None:
        """Load the weights of ``init_cfg``, if any; the others have their random values since the module was built.

        Raises:
            IgniteError: the file does not have the weights of this encoder.
        """
        source = (self.init_cfg or {}).get('checkpoint')
        if source is not None:
            content = CheckpointLoader.load_checkpoint(source, map_location='cpu')
            weights = fitting_encoder(content.get('state_dict', content), self.state_dict(), source)
            self.load_state_dict(weights, strict=False)
        self._is_init = True

    @classmethod
    def check_weights(cls, settings: Mapping, weights: Mapping[str, Tensor], source: object) -> None:
        """Raise IgniteError unless a file has the weights of the encoder with these settings.

        Args:
            settings: the backbone of a config.
            weights: ``state_dict`` of the file.
            source: its name.
        """
        with torch.device('meta'):
            own = MODELS.build({**settings, 'init_cfg': None}).state_dict()
        fitting_encoder(weights, own, source)

    @classmethod
    def check_inputs(cls, settings: Mapping, preprocessor: Mapping) -> None:
        """Raise IgniteError unless images are normalised as for the weights of the encoder.

        Args:
            settings: the backbone of a config.
            preprocessor: its data preprocessor, with ``mean`` and ``std`` in 0..255.
        """
        args = settings.get('model_args') or {}
        models = import_extra('timm.models', 'TimmEncoder', 'timm')
        known = models.resolve_pretrained_cfg(settings['model_name'], None, args.get('pretrained_cfg_overlay'))
        for name in ('mean', 'std') if known.mean and known.std else ():
            expected, found = [255 * value for value in getattr(known, name)], preprocessor.get(name)
            if not _close(found, expected):
                shown = None if found is None else [round(float(value), 2) for value in found]
                raise IgniteError(
                    f'{name} of the data preprocessor is {shown}, but {settings["model_name"]} was trained with '
                    f'{[round(value, 2) for value in expected]}: set model.data_preprocessor.{name} to it, or the statistics '
                    'of other weights in model.backbone.model_args.pretrained_cfg_overlay.'
                )


def _create(name: str, args: dict, meta: bool = False, fast: bool = False, **options: object) -> nn.Module:
    """Build a model of timm with random weights.

    Args:
        name, args: see :class:`TimmEncoder`.
        meta: on the meta device.
        fast: weights follow from a file, so torch's initial values of the layers are enough: drawing timm's takes half a
            minute for 1.1 billion parameters.
        options: further arguments of ``timm.create_model``.

    Raises:
        IgniteError: see :class:`TimmEncoder`.
    """
    timm = import_extra('timm', 'TimmEncoder', 'timm')
    if ':' in name or args.get('pretrained'):
        raise IgniteError(
            f'the model {name} would be downloaded by timm: give model_name an architecture without address or '
            'pretrained=True, and the downloaded file with --weights FILE.'
        )
    if not timm.is_model(name):
        near = timm.list_models(f'*{name.partition(".")[0].split("_")[-1]}*')[:2]
        hint = f', e.g. {" or ".join(near)}' if near else ''
        raise IgniteError(f'timm has no model {name!r}{hint}: correct model_name of the backbone.')
    layers = import_extra('timm.layers', 'TimmEncoder', 'timm')
    args = {k: getattr(layers, v, v) if k.endswith('_layer') and isinstance(v, str) else v for k, v in args.items()}
    if (meta or fast) and name.partition('.')[0] in timm.list_models(module='vision_transformer'):
        args = {'weight_init': 'skip', **args}
    try:
        with torch.device('meta') if meta else nullcontext():
            model = timm.create_model(name, pretrained=False, **{'num_classes': 0, **args, **options})
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise IgniteError(f'{name} cannot be built by timm ({reason}): correct model_args of the backbone.') from error
    for embedding in ('pos_embed', 'cls_token', 'reg_token') if fast else ():
        if isinstance(values := getattr(model, embedding, None), nn.Parameter):  # timm leaves them undefined
            nn.init.trunc_normal_(values, std=0.02)
    return model


def _features(model: nn.Module) -> list[dict]:
    """Return ``num_chs`` and ``reduction`` of each block or stage."""
    info = getattr(model, 'feature_info', None)
    found = list(getattr(info, 'info', info) or ())
    require(bool(found), 'model_name of TimmEncoder', type(model).__name__, 'a model with feature maps (feature_info)')
    return found


def _indices(wanted: Sequence[int] | None, count: int, is_plain: bool) -> list[int]:
    if wanted is None and is_plain:
        return [math.ceil((level + 1) * count / _LEVELS) - 1 for level in range(_LEVELS)]
    if wanted is None:
        return list(range(max(0, count - _LEVELS), count))
    expected = f'numbers from {-count} to {count - 1}, increasing'
    valid = all(type(index) is int and -count <= index < count for index in wanted)
    require(valid and len(wanted) > 0, 'out_indices of TimmEncoder', wanted, expected)
    indices = [index % count for index in wanted]
    require(indices == sorted(indices), 'out_indices of TimmEncoder', wanted, expected)
    return indices


def _extended(x: Tensor, bottom: int, right: int) -> Tensor:
    """Repeat the last row and column: black or grey borders would be edges that tissue does not have."""
    return F.pad(x, (0, right, 0, bottom), mode='replicate') if bottom or right else x


def _close(found: Sequence[float] | None, expected: Sequence[float]) -> bool:
    return (
        found is not None
        and len(found) == len(expected)
        and all(abs(a - b) <= _TOLERANCE for a, b in zip(found, expected))
    )
