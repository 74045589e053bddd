"""A convolutional adapter that turns the maps of a plain vision transformer into a pyramid."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from ...errors import require

_STRIDES = (4, 8, 16, 32)


@MODELS.register_module()
class SpatialAdapter(BaseModule):
    """Convolutions on the image at strides 4, 8, 16 and 32, each added to the tokens of one depth of a transformer.

    The convolutional branch is the spatial prior module of ViT-Adapter (Chen et al. 2023, arXiv 2205.08534): a stem of three
    3 x 3 convolutions and a max-pooling, then a convolution of stride 2 for each further level. Here nothing flows back into
    the transformer, so that it can be frozen and needs no gradients: the maps of four depths are projected to the width of
    a level, normalised, resampled to its stride, added, and mixed by a 3 x 3 convolution. A frozen pathology encoder with
    such a CNN adapter is what PFM-DenseBench (arXiv 2602.03887) found strongest on lung tissue.

    The maps are resampled by the ratio of the strides, not to a size, so tokens stay where they are in the image also if
    its size is not a multiple of the patch size.

    Args:
        in_channels: Channels of the four maps; set by :class:`TimmEncoder <mmseg_ignite.models.TimmEncoder>`.
        patch_size: Stride of the maps, px; set by TimmEncoder.
        channels: Channels of the four levels, as ``in_channels`` of the decode head.
        norm_cfg: Normalisation of each convolution.

    Raises:
        IgniteError: ``channels`` has not four numbers.

    Example:
        >>> adapter = SpatialAdapter(in_channels=[384] * 4, patch_size=14)
        >>> maps = adapter(torch.rand(1, 3, 512, 512), [torch.rand(1, 384, 37, 37)] * 4)
        >>> [tuple(m.shape) for m in maps]
        [(1, 64, 128, 128), (1, 128, 64, 64), (1, 256, 32, 32), (1, 256, 16, 16)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        patch_size: int,
        channels: Sequence[int] = (64, 128, 256, 256),
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        require(len(channels) == len(_STRIDES), 'channels of SpatialAdapter', channels, 'a number for each of 4 levels')
        self.patch_size, self.channels, first = patch_size, tuple(channels), channels[0]
        norm_cfg = norm_cfg or dict(type='BN')

        def convolution(inputs: int, outputs: int, size: int = 3, **options: object) -> ConvModule:
            return ConvModule(inputs, outputs, size, padding=size // 2, norm_cfg=norm_cfg, **options)

        self.stem = nn.Sequential(
            convolution(3, first, stride=2),
            convolution(first, first),
            convolution(first, first),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.downsample = nn.ModuleList(convolution(*pair, stride=2) for pair in zip(channels, channels[1:]))
        self.project = nn.ModuleList(convolution(*pair, 1, act_cfg=None) for pair in zip(in_channels, channels))
        self.mix = nn.ModuleList(convolution(width, width) for width in channels)

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the pyramid (N, channels[i], ceil(H / stride), ceil(W / stride)), strides 4, 8, 16, 32.

        Args:
            images: (N, 3, H, W), normalised.
            maps: four maps (N, in_channels[i], h, w) of tokens, from shallow to deep, that start at the top left pixel and
                reach at least to the last.
        """
        levels = [self.stem(images)]
        for downsample in self.downsample:
            levels.append(downsample(levels[-1]))
        outputs = []
        for level, x, stride, project, mix in zip(levels, maps, _STRIDES, self.project, self.mix):
            tokens = resample(project(x), self.patch_size, stride, level.shape[2:])
            outputs.append(mix(level + tokens))
        return outputs


def resample(x: Tensor, stride: int, new_stride: int, size: Sequence[int]) -> Tensor:
    """Resample a map to another stride, bilinearly, and crop it at the bottom and the right.

    Args:
        x: (N, C, h, w), whose element (i, j) is for the square of ``stride`` px at (i, j) * stride.
        stride: of x, px.
        new_stride: of the result, px.
        size: height and width of the result; it reaches at most to the last element of x.
    """
    factor, pooling = stride / new_stride, 1
    # More than 4 / 3 times coarser: means of finer elements, since bilinear sampling would skip some.
    while factor < 0.75:
        factor, pooling = 2 * factor, 2 * pooling
    if factor != 1:
        x = F.pad(x, (0, 2, 0, 2), mode='replicate')  # since the size of the result is rounded down
        x = F.interpolate(x, scale_factor=factor, mode='bilinear', align_corners=False, recompute_scale_factor=False)
    if pooling > 1:
        x = F.avg_pool2d(x, pooling, ceil_mode=True)
    return x[..., : size[0], : size[1]]
