"""A hostile checkpoint on a server runs no code, whichever setting, tool or function names its address."""

import hashlib
import io

import pytest
import torch
from checkpoint_payloads import Hostile
from conftest import DEMO_CONFIG, cfg_options, single_error, small_config, tool
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS

from mmseg_ignite.apis import Predictor, train
from mmseg_ignite.apis import test as run_test
from mmseg_ignite.engine import safe_checkpoints
from mmseg_ignite.errors import IgniteError

pytestmark = pytest.mark.usefixtures('one_thread')


def named(content):
    """Return a file name that states the checksum of its content, as OpenMMLab's do."""
    return f'x-{hashlib.sha256(content).hexdigest()[:8]}.pth'


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture
def hostile(served, tmp_path):
    """The address of a checkpoint that makes the folder ``ran`` when its code runs."""
    content = saved(dict(state_dict={}, meta={}, x=Hostile(tmp_path / 'ran')))
    served.files[named(content)] = content
    yield f'{served.root}/{named(content)}'
    assert not (tmp_path / 'ran').exists()


TOOLS = {
    'load_from': lambda url, prepared, images: ('train', [DEMO_CONFIG, *cfg_options(prepared, f'load_from={url}')]),
    'weights': lambda url, prepared, images: ('train', [DEMO_CONFIG, '--weights', url, *cfg_options(prepared)]),
    'test': lambda url, prepared, images: ('test', [DEMO_CONFIG, url, *cfg_options(prepared)]),
    'predict': lambda url, prepared, images: ('predict', [DEMO_CONFIG, url, images, '--out', 'out']),
    'fold': lambda url, prepared, images: (
        'cross_validate',
        [DEMO_CONFIG, '--weights', url, '--fold', 0, *cfg_options(prepared)],
    ),
}


@pytest.mark.parametrize('way', TOOLS)
def test_tools_end_with_one_sentence(prepared, release, hostile, tmp_path, monkeypatch, capsys, way):
    monkeypatch.chdir(tmp_path)
    name, arguments = TOOLS[way](hostile, prepared, release / 'images' / 'he')
    assert tool(name, *arguments) == 2
    assert hostile.rsplit('/', 1)[1] in single_error(capsys)


@pytest.mark.parametrize(
    'way', ['load_from', 'resume', 'backbone', 'head', 'pretrained', 'test', 'Predictor', 'mmengine']
)
def test_functions_raise_one_sentence(prepared, hostile, tmp_path, way):
    cfg = small_config(prepared, tmp_path / 'work')
    pretrained = dict(type='Pretrained', checkpoint=hostile)
    if way in ('load_from', 'resume'):
        cfg.load_from = hostile
    elif way in ('backbone', 'head'):
        cfg.model['decode_head' if way == 'head' else way].init_cfg = pretrained
    elif way == 'pretrained':
        cfg.model.pretrained, cfg.model.backbone.init_cfg = hostile, None
    model = MODELS.build(dict(cfg.model, pretrained=None)) if way == 'mmengine' else None
    with pytest.raises(IgniteError, match='other than weights'):
        if way == 'test':
            run_test(cfg, hostile)
        elif way == 'Predictor':
            Predictor(cfg, hostile, 'cpu')
        elif way == 'mmengine':
            with safe_checkpoints():
                load_checkpoint(model, hostile)
        else:
            train(cfg, resume=way == 'resume')
    assert not list(tmp_path.rglob('*.part'))


def test_good_weights_of_an_address_are_used(prepared, served, tmp_path):
    """Of the encoder, and of another part of the model."""
    cfg = small_config(prepared, tmp_path / 'work')
    model = MODELS.build(cfg.model)
    for part, prefix in (('backbone', 'backbone.'), ('decode_head', '')):
        weights = {
            prefix + k: v * 0 if v.is_floating_point() else v for k, v in getattr(model, part).state_dict().items()
        }
        content = saved(dict(state_dict=weights))
        served.files[named(content)] = content
        cfg.model[part].init_cfg = dict(type='Pretrained', checkpoint=f'{served.root}/{named(content)}')
    cfg.optim_wrapper.optimizer.lr = 0.0
    model = train(cfg).model
    assert not any(parameter.any() for parameter in model.parameters())
    assert len(served.requests) == 2
