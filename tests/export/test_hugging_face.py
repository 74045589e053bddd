"""Folders for transformers: opened by from_pretrained without missing keys, with equal outputs."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from tiny_segformer import CLASSES, logits, our_epsilon, tiny_config, tiny_segformer
from torchvision_shim import import_or_skip

from mmseg_ignite.engine import open_checkpoint
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.export.hugging_face import FILES, write_hugging_face
from mmseg_ignite.labels import CLASSES as NAMES

DESCRIPTION = dict(
    name='tiny', classes=NAMES, palette=[(n, 0, 0) for n in range(CLASSES)], um_per_px=0.5, window=(64, 64),
    channel_order='RGB', mean=(120.0, 110.0, 100.0), std=(50.0, 60.0, 70.0),
)  # fmt: skip


def opened(kind, folder):
    """Return the model that transformers reads, checked to be complete."""
    transformers = import_or_skip('transformers', 'dev')
    model, found = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(found[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), found
    assert not model.training
    return our_epsilon(model)


@torch.no_grad()
@pytest.mark.parametrize('depths', ['B0', 'B2'])
@pytest.mark.parametrize('plain', [True, False])
def test_transformers_computes_the_same(tmp_path, depths, plain):
    own = tiny_segformer(plain, depths)
    lines = write_hugging_face(tmp_path / 'hf', own, SimpleNamespace(**DESCRIPTION), '# Card\n')
    assert sorted(path.name for path in (tmp_path / 'hf').iterdir()) == sorted(FILES)
    kind = 'SegformerForSemanticSegmentation' if plain else 'SegformerModel'
    assert lines[0].startswith(kind) and ('ReLU cannot be folded away' in lines[-1]) == (not plain)
    model, x = opened(kind, tmp_path / 'hf'), torch.randn(2, 3, 64, 96)
    if plain:
        torch.testing.assert_close(model(x).logits, logits(own, x), rtol=1e-4, atol=1e-4)
        assert model.config.id2label[1] == NAMES[1] and model.config.label2id[NAMES[2]] == 2
    maps = getattr(model, 'segformer', model)(x, output_hidden_states=True).hidden_states
    for a, b in zip(maps, own.backbone(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert model.config.mmseg_ignite['um_per_px'] == 0.5 and model.config.layer_norm_eps == 1e-6


@torch.no_grad()
def test_a_network_that_takes_bgr_and_unusual_settings(tmp_path):
    init_default_scope('mmseg')
    cfg = tiny_config().model
    cfg.backbone.update(mlp_ratio=2, sr_ratios=[4, 2, 1, 1], drop_path_rate=0.2, attn_drop_rate=0.1, drop_rate=0.3)
    own = MODELS.build(cfg).eval()
    write_hugging_face(tmp_path, own, SimpleNamespace(**{**DESCRIPTION, 'channel_order': 'BGR'}), '')
    model, x = opened('SegformerForSemanticSegmentation', tmp_path), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x.flip(1)).logits, logits(own, x), rtol=1e-4, atol=1e-4)
    config, preprocessing = (json.loads((tmp_path / name).read_text()) for name in (FILES[0], FILES[2]))
    assert (
        preprocessing['image_mean'] == [round(n / 255, 9) for n in (100, 110, 120)] and not preprocessing['do_resize']
    )
    assert (config['drop_path_rate'], config['attention_probs_dropout_prob'], config['hidden_dropout_prob']) == (
        pytest.approx(0.2), 0.1, 0.3,
    )  # fmt: skip


def test_the_preprocessor_normalises_as_the_network_expects(tmp_path):
    import_or_skip('transformers', 'dev')
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    write_hugging_face(tmp_path, tiny_segformer(), SimpleNamespace(**DESCRIPTION), '')
    image = torch.randint(0, 256, (70, 90, 3), dtype=torch.uint8)
    found = SegformerImageProcessorPil.from_pretrained(tmp_path)(image.numpy(), return_tensors='pt')['pixel_values']
    mean, std = (torch.tensor(DESCRIPTION[key]) for key in ('mean', 'std'))
    torch.testing.assert_close(found[0], ((image - mean) / std).permute(2, 0, 1), rtol=1e-4, atol=1e-4)


def test_names_of_patients_stay_here_and_files_are_kept(tmp_path):
    write_hugging_face(tmp_path, tiny_segformer(), SimpleNamespace(**DESCRIPTION), 'card')
    assert (tmp_path / 'README.md').read_text() == 'card' and 'meta' not in open_checkpoint(
        tmp_path / 'model.safetensors'
    )
    with pytest.raises(IgniteError, match=r'has config\.json already and is kept'):
        write_hugging_face(tmp_path, tiny_segformer(), SimpleNamespace(**DESCRIPTION), 'card')


def test_models_that_transformers_does_not_have(tmp_path):
    init_default_scope('mmseg')
    few = SimpleNamespace(**{**DESCRIPTION, 'classes': ('a', 'b')})
    cfg = tiny_config().model
    cfg.decode_head.align_corners = True
    lines = write_hugging_face(tmp_path / 'a', MODELS.build(cfg), SimpleNamespace(**DESCRIPTION), '')
    assert lines[0].startswith('SegformerModel') and 'interpolation' in lines[1]
    cfg = tiny_config().model
    cfg.backbone.act_cfg = dict(type='ReLU')
    ensemble = MODELS.build({**tiny_config().model, 'type': 'TissueEnsemble', 'size': 2})
    for model, description, reason in (
        (tiny_segformer(), few, '16 output channels, but 2 classes'),
        (MODELS.build(cfg), few, 'other activations'),
        (ensemble, few, 'is an ensemble'),
    ):
        with pytest.raises(IgniteError, match=reason):
            write_hugging_face(tmp_path / 'b', model, description, '')
    assert not (tmp_path / 'b').exists()
