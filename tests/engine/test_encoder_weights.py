"""Pretrained encoder weights: local files, names of other projects, downloads with checksums."""

import hashlib
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, DEMO_CONFIG
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_ignite.apis import load_config
from mmseg_ignite.engine.encoder_weights import set_encoder_weights
from mmseg_ignite.errors import IgniteError


@pytest.fixture
def encoder(tmp_path):
    """A MiT-B0 backbone and a file with its state dict in mmseg's key names."""
    init_default_scope('mmseg')
    backbone = MODELS.build(load_config(DEMO_CONFIG).model.backbone)
    torch.save(backbone.state_dict(), tmp_path / 'mit_b0.pth')
    return backbone, tmp_path / 'mit_b0.pth'


def test_local_file_is_loaded(encoder):
    backbone, path = encoder
    cfg = load_config(DEMO_CONFIG)
    set_encoder_weights(cfg, str(path))
    cfg.model.decode_head.norm_cfg.type = 'BN'
    model = MODELS.build(cfg.model)
    model.init_weights()
    for key, value in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value)


def test_none_means_random_weights(encoder):
    cfg = load_config(CONFIGS / 'segformer_mit-b0_1xb8-20k_ignite-512x512.py')
    set_encoder_weights(cfg, 'none')
    assert cfg.model.backbone.init_cfg is None


def test_weights_of_another_size_are_refused(encoder):
    cfg = load_config(CONFIGS / 'segformer_mit-b1_1xb8-20k_ignite-512x512.py')
    with pytest.raises(IgniteError, match='same MiT size'):
        set_encoder_weights(cfg, str(encoder[1]))


def with_original_names(state):
    """Rename the keys of mmseg's MiT to the key names of the SegFormer authors' code."""
    import re

    parts = {'attn.attn.out_proj': 'attn.proj', 'attn.sr': 'attn.sr', 'attn.norm': 'attn.norm', 'norm1': 'norm1',
             'norm2': 'norm2', 'ffn.layers.0': 'mlp.fc1', 'ffn.layers.1': 'mlp.dwconv.dwconv',
             'ffn.layers.4': 'mlp.fc2'}  # fmt: skip
    result = {'head.weight': torch.ones(1000, 256), 'head.bias': torch.ones(1000)}
    for name, value in state.items():
        stage, kind, rest = re.fullmatch(r'layers\.(\d)\.(\d)\.(.+)', name).groups()
        stage = int(stage) + 1
        if kind == '0':
            result[f'patch_embed{stage}.{rest.replace("projection", "proj")}'] = value
        elif kind == '2':
            result[f'norm{stage}.{rest}'] = value
        elif 'in_proj' in rest:
            block, suffix = rest.split('.')[0], rest.rsplit('_', 1)[1]
            third = len(value) // 3
            result[f'block{stage}.{block}.attn.q.{suffix}'] = value[:third]
            result[f'block{stage}.{block}.attn.kv.{suffix}'] = value[third:]
        else:
            block, part = rest.split('.', 1)
            part, suffix = part.rsplit('.', 1)
            if parts[part] in ('mlp.fc1', 'mlp.fc2') and suffix == 'weight':
                value = value[:, :, 0, 0]
            result[f'block{stage}.{block}.{parts[part]}.{suffix}'] = value
    return result


def test_weights_of_the_segformer_authors_are_loaded(encoder, tmp_path):
    backbone, _ = encoder
    for state in (
        with_original_names(backbone.state_dict()),
        dict(state_dict=with_original_names(backbone.state_dict())),
    ):
        torch.save(state, tmp_path / 'mit_b0_original.pth')
        cfg = load_config(DEMO_CONFIG, work_dir=str(tmp_path / 'w'))
        set_encoder_weights(cfg, str(tmp_path / 'mit_b0_original.pth'))
        cfg.model.decode_head.norm_cfg.type = 'BN'
        model = MODELS.build(cfg.model)
        model.init_weights()
        for key, value in backbone.state_dict().items():
            assert torch.equal(model.backbone.state_dict()[key], value)
    with pytest.raises(IgniteError, match='same MiT size'):
        set_encoder_weights(load_config(CONFIGS / 'segformer_mit-b1_1xb8-20k_ignite-512x512.py'),
                            str(tmp_path / 'mit_b0_original.pth'))  # fmt: skip


def test_hugging_face_weights_are_recognised(tmp_path):
    torch.save({'segformer.encoder.patch_embeddings.0.proj.weight': torch.ones(1)}, tmp_path / 'hf.pth')
    with pytest.raises(IgniteError, match='Hugging Face'):
        set_encoder_weights(load_config(DEMO_CONFIG), str(tmp_path / 'hf.pth'))


def test_missing_file_or_wrong_checksum_is_refused(encoder, tmp_path):
    with pytest.raises(IgniteError, match='missing'):
        set_encoder_weights(load_config(DEMO_CONFIG), 'missing.pth')
    wrong = tmp_path / 'mit_b0-00000000.pth'
    wrong.write_bytes(encoder[1].read_bytes())
    with pytest.raises(IgniteError, match='SHA-256'):
        set_encoder_weights(load_config(DEMO_CONFIG), str(wrong))


def test_an_address_is_downloaded_and_checked(encoder, served):
    """Also for a config of a user who has no network."""
    digest = hashlib.sha256(encoder[1].read_bytes()).hexdigest()
    served.files = {f'good-{digest[:8]}.pth': encoder[1].read_bytes(), 'bad-01234567.pth': encoder[1].read_bytes()}
    cfg = load_config(DEMO_CONFIG)
    set_encoder_weights(cfg, f'{served.root}/good-{digest[:8]}.pth')
    assert Path(cfg.model.backbone.init_cfg.checkpoint) == served.cache / f'good-{digest[:8]}.pth'
    for name, reason in (('bad-01234567.pth', digest), ('missing-01234567.pth', '404.*--weights none')):
        with pytest.raises(IgniteError, match=reason):
            set_encoder_weights(cfg, f'{served.root}/{name}')
