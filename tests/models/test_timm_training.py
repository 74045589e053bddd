"""Trainings with an encoder of timm: what is trained and stored, resuming, prediction."""

import numpy as np
import pytest
import torch
from timm_example import tiny_config, vit
from torchvision_shim import import_or_skip

from mmseg_ignite.apis import Predictor, train
from mmseg_ignite.engine import open_checkpoint
from mmseg_ignite.engine.encoder_weights import set_encoder_weights
from mmseg_ignite.errors import IgniteError

import_or_skip('timm', 'timm')
pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def trained(prepared, tmp_path_factory):
    """A training of four iterations with a frozen ViT whose file is given as --weights, and all that it used."""
    folder = tmp_path_factory.mktemp('timm')
    weights = vit().model.state_dict()
    torch.save(weights, folder / 'vit.pth')
    options = {'default_hooks.checkpoint.interval': 2}
    cfg = tiny_config(prepared, folder, folder / 'run', None, **options)
    runner = train(cfg, weights=str(folder / 'vit.pth'))
    return folder, cfg, runner, weights


def test_the_frozen_encoder_keeps_the_weights_of_its_file(trained):
    folder, _, runner, weights = trained
    start = open_checkpoint(folder / 'run' / 'iter_2.pth')['state_dict']
    end = open_checkpoint(folder / 'run' / 'iter_4.pth')['state_dict']
    own = {
        key.removeprefix('backbone.model.'): value for key, value in end.items() if key.startswith('backbone.model.')
    }
    assert own and all(torch.equal(value, weights[key]) for key, value in own.items())
    for part in ('backbone.adapter.', 'decode_head.'):
        assert any(not torch.equal(start[key], end[key]) for key in end if key.startswith(part))
    assert not runner.model.backbone.model.training


def test_only_adapter_and_head_are_in_the_optimizer_with_ten_times_the_rate(trained):
    _, _, runner, _ = trained
    model, optimizer = runner.model, runner.optim_wrapper.optimizer
    found = {id(parameter): group['initial_lr'] for group in optimizer.param_groups for parameter in group['params']}
    assert {id(p) for p in model.parameters() if p.requires_grad} == found.keys()
    assert list(found.values()) == pytest.approx([6e-4] * len(found))
    assert all(p.grad is None for p in model.backbone.model.parameters())


def test_the_frozen_encoder_is_stored_once(trained):
    """Neither the optimizer, nor the averages, nor the copies of FiniteLossHook have one of their own."""
    folder, _, runner, _ = trained
    own, model = runner.model.backbone.model, runner.model
    (averages,) = (hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
    (copies,) = (hook._copies._copies[0] for hook in runner.hooks if hasattr(hook, '_copies'))
    for name, parameter in own.named_parameters():
        assert averages.module.backbone.model.get_parameter(name).data_ptr() == parameter.data_ptr()
        assert copies[f'backbone.model.{name}'].data_ptr() == parameter.data_ptr()
    assert copies.keys() == model.state_dict().keys()
    checkpoint = open_checkpoint(folder / 'run' / 'iter_4.pth')
    for name, _ in own.named_parameters():
        average = checkpoint['ema_state_dict'][f'module.backbone.model.{name}']
        assert average.data_ptr() == checkpoint['state_dict'][f'backbone.model.{name}'].data_ptr()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(checkpoint['optimizer']['state']) == len(trained)


def test_a_resumed_training_equals_the_uninterrupted_one(trained, prepared):
    folder, _, _, _ = trained
    start = str(folder / 'run' / 'iter_2.pth')
    train(tiny_config(prepared, folder, folder / 'resumed', None, load_from=start, resume=True))
    expected, found = (open_checkpoint(folder / name / 'iter_4.pth') for name in ('run', 'resumed'))
    for part in ('state_dict', 'ema_state_dict'):
        assert expected[part].keys() == found[part].keys()
        assert all(torch.equal(value, found[part][key]) for key, value in expected[part].items())
    moments = (checkpoint['optimizer']['state'] for checkpoint in (expected, found))
    assert all(torch.equal(a['exp_avg'], b['exp_avg']) for a, b in zip(*(m.values() for m in moments), strict=True))


def test_the_trained_model_predicts_by_sliding_windows(trained):
    """Without the file of the encoder; windows of 64 px with patches of 14 px."""
    folder, cfg, _, _ = trained
    predictor = Predictor(cfg, folder / 'run' / 'iter_4.pth')
    image = np.random.default_rng(0).integers(0, 256, (100, 139, 3), dtype=np.uint8)
    labels = predictor.predict(image)
    assert labels.shape == (100, 139) and labels.max() < 16
    window = predictor.predict(np.ascontiguousarray(image[:64, :64]))
    assert (labels[:36, :48] == window[:36, :48]).all()  # no other window reaches there


def test_weights_of_another_encoder_are_refused_before_the_training(prepared, tmp_path):
    torch.save(vit(16).model.state_dict(), tmp_path / 'o.pth')
    cfg = tiny_config(prepared, tmp_path, tmp_path / 'run', tmp_path / 'o.pth')
    with pytest.raises(IgniteError, match='o.pth does not contain the weights of this encoder'):
        train(cfg)
    assert not list((tmp_path / 'run').glob('*.pth'))
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'none.pth')
    with pytest.raises(IgniteError, match='none.pth is not a file.*--weights FILE'):
        set_encoder_weights(cfg, None)
    with pytest.raises(IgniteError, match='frozen encoder with random weights'):
        set_encoder_weights(cfg, 'none')


def test_an_encoder_that_is_not_frozen_is_trained_layer_by_layer(prepared, tmp_path):
    """Learning rates by block, as in the docs; none decays position embeddings and tokens."""
    rates = {f'backbone.model.blocks.{block}.': dict(lr_mult=0.5 ** (2 - block)) for block in range(2)}
    cfg = tiny_config(prepared, tmp_path, tmp_path / 'run', None, 1, **{'model.backbone.frozen': False})
    cfg.optim_wrapper.paramwise_cfg.custom_keys.update(rates)
    runner = train(cfg, weights='none')
    names = {id(parameter): name for name, parameter in runner.model.named_parameters()}
    groups = runner.optim_wrapper.optimizer.param_groups
    found = {names[id(p)]: (g['initial_lr'], g['weight_decay']) for g in groups for p in g['params']}
    assert found.keys() == set(names.values())
    assert found['backbone.model.blocks.0.attn.qkv.weight'] == pytest.approx((1.5e-5, 0.01))
    assert found['backbone.model.blocks.1.attn.qkv.weight'] == pytest.approx((3e-5, 0.01))
    assert found['backbone.model.pos_embed'] == found['backbone.model.reg_token'] == pytest.approx((6e-5, 0))
    assert found['backbone.adapter.stem.0.conv.weight'] == pytest.approx((6e-4, 0.01))
    assert len(runner.optim_wrapper.optimizer.state) == len(names)
