"""tools/export.py --format onnx, and the file in place of the checkpoint: the same labels of images and of a slide."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, ROOT, single_error, tool
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from mmseg_ignite.apis import load_config
from mmseg_ignite.files import sha256
from mmseg_ignite.labels import CLASSES

for package in ('onnx', 'onnxruntime', 'onnxscript'):
    pytest.importorskip(package, reason='the packages of mmseg_ignite[export] are not installed')
import onnx  # noqa: E402

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def config(prepared):
    """MiT with one stage of one block: recording takes a second per operator."""
    cfg = load_config(DEMO_CONFIG, dict(data_root=str(prepared)))
    cfg.model.backbone.update(embed_dims=8, num_stages=1, num_layers=[1], num_heads=[2], patch_sizes=[7], strides=[4])
    cfg.model.backbone.update(sr_ratios=[8], out_indices=(0,), init_cfg=None)
    cfg.model.decode_head.update(in_channels=[16], in_index=[0], channels=16)
    cfg.model.data_preprocessor.size = None
    cfg.model.test_cfg = dict(mode='slide', crop_size=(96, 96), stride=(64, 64))
    return cfg


@pytest.fixture(scope='module')
def checkpoint(config, tmp_path_factory):
    """Weights of which the labels form regions, at 2 um/px."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    state, path = MODELS.build(config.model).state_dict(), tmp_path_factory.mktemp('model') / 'c.pth'
    state['decode_head.conv_seg.weight'] *= 50
    torch.save(dict(state_dict=state, meta=dict(mmseg_ignite=dict(um_per_px=2.0))), path)
    return path


@pytest.fixture(autouse=True, scope='module')
def config_loaded_once(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmseg_ignite.apis.load_config', lambda *_: copy.deepcopy(config))
        yield


@pytest.fixture(scope='module')
def package(config_loaded_once, checkpoint, tmp_path_factory):
    """The folder of an export."""
    out = tmp_path_factory.mktemp('exported')
    assert tool('export', DEMO_CONFIG, checkpoint, '--out', out, '--raw-input') == 0
    return out / 'onnx'


def predicted(model, image, out, *options):
    assert tool('predict', DEMO_CONFIG, model, image, '--out', out, '--device', 'cpu', '--min-area', 0, *options) == 0
    return json.loads((out / 'run.json').read_text())


def test_package_is_complete_and_states_the_model(package, checkpoint):
    assert {path.name for path in package.iterdir()} == {'MODEL_CARD.md', 'README.md', 'export.json', 'model.onnx'}
    facts = {entry.key: json.loads(entry.value) for entry in onnx.load(package / 'model.onnx').metadata_props}
    assert facts['classes'] == list(CLASSES) and facts['um_per_px'] == 2 and facts['inputs'] == 'nhwc'
    assert facts['checkpoints'] == [dict(file='c.pth', sha256=sha256(checkpoint))] and facts['window'] == [96, 96]
    text = (package / 'README.md').read_text()
    assert 'x = rgb[None]' in text and 'windows of 96 x 96 px every 64 x 64 px' in text


def test_images_get_the_labels_of_the_checkpoint(package, checkpoint, tmp_path, rng_image):
    Image.fromarray(rng_image).save(tmp_path / 'a.png')
    for options in ((), ('--symmetries', 4)):
        found = []
        for number, model in enumerate((checkpoint, package / 'model.onnx')):
            out = tmp_path / f'out{number}{len(options)}'
            record = predicted(model, tmp_path / 'a.png', out, '--formats', 'label', *options)
            found.append(np.array(Image.open(out / 'a.png')))
        assert (found[0] == found[1]).mean() > 0.999 and len(np.unique(found[0])) > 1
    assert record['engine'].startswith('onnxruntime ') and record['training']['um_per_px'] == 2
    assert record['checkpoints'][0]['sha256'] == sha256(package / 'model.onnx')
    assert record['exported_from'] == [dict(file='c.pth', sha256=sha256(checkpoint))]


@pytest.fixture
def rng_image():
    """Smooth random colours of an odd size."""
    small = np.random.default_rng().integers(0, 256, (9, 11, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((171, 133), Image.Resampling.BICUBIC))


def test_slides_get_the_labels_of_the_checkpoint(package, checkpoint, tmp_path):
    pytest.importorskip('openslide', reason='the packages of mmseg_ignite[slides] are not installed')
    sys.path.insert(0, str(ROOT / 'tests' / 'slides'))
    import tifffile
    from slide_example import write_slide

    write_slide(tmp_path / 's.svs', (700, 1100), 1.0, 0.25, levels=(1, 4), tile=64)
    found = []
    for number, model in enumerate((checkpoint, package / 'model.onnx')):
        predicted(model, tmp_path / 's.svs', tmp_path / f'out{number}', '--formats', 'label', 'areas', 'entropy')
        found.append([tifffile.imread(path) for path in sorted((tmp_path / f'out{number}').glob('s*.ome.tif'))])
    labels, entropies = zip(*(sorted(maps, key=lambda m: m.max()) for maps in found))
    assert (labels[0] == labels[1]).mean() > 0.999
    assert np.abs(entropies[0].astype(int) - entropies[1]).max() <= 1


def test_export_replaces_only_its_own_files(package, checkpoint, capsys):
    arguments = ('export', DEMO_CONFIG, checkpoint, '--out', package.parent)
    assert tool(*arguments) == 2 and 'has files already' in single_error(capsys)
    (package / 'mine.txt').touch()
    assert tool(*arguments, '--overwrite') == 2 and 'has files that no export wrote (mine.txt)' in single_error(capsys)
    (package / 'mine.txt').unlink()


def test_a_failed_comparison_leaves_nothing(checkpoint, tmp_path, capsys, monkeypatch):
    """The file is that of another network."""
    rng = np.random.default_rng()
    sys.path.insert(0, str(ROOT / 'tests' / 'models'))
    import onnx_graphs

    def other(path, network, metadata):
        onnx_graphs.save(path, onnx_graphs.graph(*onnx_graphs.weights(rng)), metadata)

    monkeypatch.setattr('mmseg_ignite.export.onnx_package.write_onnx', other)
    assert tool('export', DEMO_CONFIG, checkpoint, '--out', tmp_path / 'out') == 2
    assert 'does not compute what the model computes' in single_error(capsys)
    assert not list(tmp_path.glob('out/*'))
