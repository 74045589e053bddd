"""A tiny network with random weights, and images for the page."""

import numpy as np
import torch
from conftest import DEMO_CONFIG
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from mmseg_ignite.apis import Predictor, load_config

UM = 1.0


def tiny_predictor(folder):
    """Write a checkpoint and return its predictor, trained at 1 um/px."""
    cfg = load_config(DEMO_CONFIG)
    cfg.model.backbone.update(init_cfg=None, embed_dims=8)
    cfg.model.decode_head.update(in_channels=[8, 16, 40, 64], channels=16)
    cfg.model.data_preprocessor.size = None
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(48, 48))
    init_default_scope('mmseg')
    torch.manual_seed(1)
    state = MODELS.build(cfg.model).state_dict()
    state['decode_head.conv_seg.weight'] *= 50  # labels form regions with clear borders
    torch.save(dict(state_dict=state, meta=dict(mmseg_ignite=dict(um_per_px=UM))), folder / 'tiny.pth')
    return Predictor(cfg, folder / 'tiny.pth', device='cpu')


def write_image(path, size=(90, 120), seed=0, **options):
    """Write a picture of coloured blobs; return its pixels."""
    small = np.random.default_rng(seed).integers(40, 255, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)
    picture.save(path, **options)
    return np.asarray(picture)
