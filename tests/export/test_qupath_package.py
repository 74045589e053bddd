"""The pixel classifier for QuPath: each rule of its JSON, its TorchScript, and the tiles that QuPath makes.

QuPath itself does not run here; ``qupath_probabilities`` repeats what its sources do to an image.
"""

import copy
import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.export import ExportNetwork, ModelDescription
from mmseg_ignite.export import qupath_package as package
from mmseg_ignite.export.packages import FORMATS, Exported
from mmseg_ignite.export.qupath_classifier import (
    PLACEHOLDER,
    qupath_classifier,
    qupath_classifier_faults,
    tile_padding,
    window_fault,
)
from mmseg_ignite.export.torchscript import load_torchscript, torchscript_faults, write_torchscript
from mmseg_ignite.labels import COLOURS
from mmseg_ignite.preparation.synthetic import draw_tissue

pytestmark = pytest.mark.usefixtures('one_thread')

CLASSES = ('Background', 'Tumor epithelium', 'Stroma', 'Cartilage/Bone')
WINDOW = (64, 96)


def build(kind='TissueSegmentor', **more):
    """Build a small SegFormer whose classes all occur."""
    init_default_scope('mmseg')
    torch.manual_seed(5)
    model = MODELS.build(
        dict(
            type=kind,
            data_preprocessor=dict(
                type='SegDataPreProcessor', mean=[190.0, 160.0, 180.0], std=[40.0, 50.0, 45.0], bgr_to_rgb=True
            ),
            backbone=dict(
                type='FastMixVisionTransformer', embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 2, 2],
                sr_ratios=[8, 4, 2, 1], mlp_ratio=2),
            decode_head=dict(
                type='FastSegformerHead', in_channels=[8, 16, 16, 16], in_index=[0, 1, 2, 3], channels=16,
                num_classes=len(CLASSES), norm_cfg=dict(type='BN')),
            train_cfg=dict(),
            test_cfg=dict(mode='slide', crop_size=WINDOW, stride=(48, 64)),
            **more,
        )
    )  # fmt: skip
    model.init_weights()
    model.eval()
    for member in getattr(model, 'members', [model]):
        torch.nn.init.normal_(member.decode_head.conv_seg.weight, std=1)
        network, bias = ExportNetwork(member, 'float'), member.decode_head.conv_seg.bias
        with torch.no_grad():
            bias -= network(torch.rand(2, 3, *WINDOW) * 255).mean((0, 2, 3))
    return model


def describe(**changes):
    known = ModelDescription(
        name='small', architecture='MiT + head', parameters=1, members=1, classes=CLASSES,
        palette=tuple(COLOURS[name] for name in CLASSES), um_per_px=0.49999, channel_order='RGB', mean=(0.0,) * 3,
        std=(1.0,) * 3, window=WINDOW, stride=(48, 64), checkpoints=(('a.pth', '0' * 64),), config_sha256='0' * 64,
        records=(None,))  # fmt: skip
    return replace(known, **changes)


@pytest.fixture(scope='module')
def model():
    return build()


@pytest.fixture(scope='module')
def written(model, tmp_path_factory):
    """A package, and the lines and warnings of writing it."""
    folder, lines = tmp_path_factory.mktemp('qupath'), []
    tissue = [draw_tissue((150, 100)), draw_tissue((30, 40))]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        exported = Exported(model, describe(), [{}], '# card é\n', tissue, report=lines.append)
        package.check(exported)
        package.write(folder, exported)
    return folder, lines, [str(warning.message) for warning in seen]


def test_package_has_its_files_and_was_compared_without_warnings(written):
    folder, lines, seen = written
    assert sorted(path.name for path in folder.iterdir()) == sorted(package.FILES)
    assert seen == [] and len(lines) == 1 and 'same class in 100.0000 %' in lines[0] and 'of 5 images' in lines[0]
    assert FORMATS['qupath'].load() is package
    assert (folder / 'MODEL_CARD.md').read_text('utf-8') == '# card é\n'
    content = json.loads((folder / 'pixel_classifier.json').read_text('utf-8'))
    assert content == qupath_classifier(describe()) and qupath_classifier_faults(content) == []
    classes = json.loads((folder / 'classes.json').read_text('utf-8'))['pathClasses']
    assert [known['name'] for known in classes] == ['Background*', *CLASSES[1:]]
    assert classes[1]['color'] == 0xFF00FDFF - (1 << 32)


def test_texts_name_what_is_in_the_package(written):
    folder = written[0]
    script, readme = ((folder / name).read_text('utf-8') for name in ('install.groovy', 'README.md'))
    assert script.isascii() and f'MODEL_BYTES = {(folder / "model.pt").stat().st_size}L' in script
    assert "def NAME = 'small'" in script and "['Background*', 255, 255, 255]" in script
    assert (folder / 'pixel_classifier.json').read_text('utf-8').count(PLACEHOLDER) == script.count(PLACEHOLDER) == 1
    for opening, closing in ('()', '[]', '{}'):
        assert script.count(opening) == script.count(closing)
    assert 'tiles of 64 x 32 px with 16 px of context' in readme and 'at 0.5 um/px' in readme
    assert 'QuPath itself was not run' in readme and set(re.findall(r'`(\S+\.(?:pt|groovy|json|md))`', readme)) >= {
        *('model.pt', 'install.groovy', 'pixel_classifier.json', 'classes.json', 'MODEL_CARD.md')
    }
    assert '{{' not in readme + script and '{%' not in readme + script


def test_texts_of_groovy_are_quoted():
    assert package._groovy_text("a'\\$µ\n") == "'a\\u0027\\u005c$\\u00b5\\u000a'"


def test_torchscript_is_readable_by_older_versions_and_names_no_path(written):
    path = written[0] / 'model.pt'
    assert torchscript_faults(path) == []
    text = path.read_bytes()
    assert b'debug_pkl' not in text and b'/mmseg_ignite/' not in text.replace(b'/code/__torch__/mmseg_ignite/', b'')
    assert b'/home' not in text and str(package.__file__).rpartition('/')[0].encode() not in text


class Odd(torch.nn.Module):
    def forward(self, x):
        return x.digamma()


def test_operators_of_newer_versions_are_refused(tmp_path):
    with pytest.raises(IgniteError, match='uses the operator aten::digamma'):
        write_torchscript(Odd(), tmp_path / 'model.pt', (8, 8))
    assert list(tmp_path.iterdir()) == []


def test_file_that_computes_something_else_is_discarded(model, tmp_path, monkeypatch):
    other = copy.deepcopy(model)
    torch.nn.init.normal_(other.decode_head.conv_seg.weight, std=1)
    wrong = ExportNetwork(other, 'float', 'probabilities')
    monkeypatch.setattr(package, 'write_torchscript', lambda network, *where: write_torchscript(wrong, *where))
    with pytest.raises(IgniteError, match='does not compute what the model computes'):
        package.write(tmp_path, Exported(model, describe(), [{}], '', report=lambda line: None))


def _alone(ensemble):
    """Return the members as networks of their own."""
    first = copy.deepcopy(ensemble)
    first.others = torch.nn.ModuleList()
    return [first, *ensemble.others]


def test_ensemble_is_one_network(tmp_path):
    ensemble = build('TissueEnsemble', size=2)
    lines = []
    package.write(tmp_path, Exported(ensemble, describe(members=2), [{}, {}], '', report=lines.append))
    assert 'same class in 100' in lines[0]
    x = torch.rand(1, 3, *WINDOW) * 255
    with torch.no_grad():
        mean = sum(ExportNetwork(member, 'float', 'probabilities')(x) for member in _alone(ensemble)) / 2
    torch.testing.assert_close(load_torchscript(tmp_path / 'model.pt')(x), mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(window=(100, 100)), 'multiples of 32 px'),
        (dict(window=(32, 64)), 'multiples of 32 px'),
        (dict(classes=('Background', 'a: b', 'c', 'd')), "has a ':'"),
        (dict(classes=('Background', 'a\nb', 'c', 'd')), 'line break'),
        (dict(um_per_px=0.0), 'resolution'),
    ],
)
def test_models_that_qupath_could_not_run_are_refused(model, changes, message):
    with pytest.raises(IgniteError, match=message):
        package.check(Exported(model, describe(**changes), [{}], ''))


@pytest.mark.parametrize('side', range(64, 1025, 32))
def test_tiles_are_multiples_of_32(side):
    padding = tile_padding((side, side + 64))
    assert window_fault((side, side)) is None and side / 8 <= padding < side / 8 + 16
    assert (side - 2 * padding) % 32 == 0 and side - 2 * padding > 0 and tile_padding((512, 512)) == 64


def paths(content, prefix=()):
    """Yield the path of each value in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from paths(value, (*prefix, key))


CONTENT = qupath_classifier(describe())
FREE = {('metadata', 'classificationLabels', str(i), key) for i in range(len(CLASSES)) for key in ('name', 'color')}
"""Values that another model may have."""


def broken(path, change):
    content = copy.deepcopy(CONTENT)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return qupath_classifier_faults(content)


def other(value):
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else f'{value}x' if isinstance(value, str) else type(value)()


@pytest.mark.parametrize('path', list(paths(CONTENT)), ids=lambda path: '.'.join(map(str, path)))
def test_each_key_of_the_classifier_is_checked(path):
    assert broken(path, lambda parent, key: parent.pop(key))
    if not any(path[: len(free)] == free for free in FREE):
        value = at(CONTENT, path)
        if other(value) != value:
            assert broken(path, lambda parent, key: parent.__setitem__(key, other(value)))
        assert broken(path, lambda parent, key: parent.__setitem__(key, None))


def at(content, path):
    for key in path:
        content = content[key]
    return content


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('metadata.outputType', 'MULTICLASS_PROBABILITY', "outputType is 'MULTICLASS_PROBABILITY'"),
        ('metadata.outputChannels', [], 'outputChannels is set'),
        ('metadata.inputResolution.pixelWidth.unit', '\u03bcm', 'unit of pixelWidth'),
        ('metadata.inputPadding', 8, 'padding'),
        ('metadata.inputWidth', 100, 'the window is 64 x 100 px'),
        ('metadata.classificationLabels.1.name', 'Tumor: a', "has a ':'"),
        ('metadata.classificationLabels.1.name', 'Stroma', 'occurs twice'),
        ('metadata.classificationLabels.1.name', 'Tumor*', 'alone was expected'),
        ('metadata.classificationLabels.0.name', 'Background', 'alone was expected'),
        ('metadata.classificationLabels.1.color', [0, 0, 256], 'three integers'),
        ('metadata.classificationLabels.1.color', [0, 0], 'three integers'),
    ],
)
def test_faults_are_sentences(path, value, message):
    faults = broken(path.split('.'), lambda parent, key: parent.__setitem__(key, value))
    assert any(message in fault for fault in faults), faults


@pytest.mark.parametrize('content', [None, [], {}, 'text', {'metadata': 3, 'op': []}])
def test_other_content_is_a_fault(content):
    assert len(qupath_classifier_faults(content)) == 1


def qupath_probabilities(run, image, content):
    """Return what QuPath shows: (classes, h, w) uint8, from (h, w, 3) uint8, tile by tile.

    The image is repeated at its edges by the padding; tiles at its right and lower edge, which are smaller, are centred in
    a window and mirrored; OpenCV multiplies by 255 and rounds to the nearest integer.
    """
    metadata, ops = content['metadata'], content['op']['op']['ops']
    (h, w), p = (metadata['inputHeight'], metadata['inputWidth']), metadata['inputPadding']
    out = np.zeros((len(metadata['classificationLabels']), *image.shape[:2]), np.uint8)
    padded = np.pad(image, [(p, p), (p, p), (0, 0)], mode='edge').astype(np.float32)
    for top in range(0, image.shape[0], h - 2 * p):
        for left in range(0, image.shape[1], w - 2 * p):
            tile = padded[top : top + h, left : left + w]
            sides = [((side - have) // 2, side - have - (side - have) // 2) for side, have in zip((h, w), tile.shape)]
            x = np.pad(tile, [*sides, (0, 0)], mode='symmetric').transpose(2, 0, 1)[None]
            y = run(torch.from_numpy(np.ascontiguousarray(x)))[0].numpy()
            y = y[:, sides[0][0] : h - sides[0][1], sides[1][0] : w - sides[1][1]][:, p:-p, p:-p]
            out[:, top : top + h - 2 * p, left : left + w - 2 * p] = np.rint(y * np.float32(ops[2]['values'][0]))
    return out


@torch.no_grad()
def test_tiles_of_qupath_have_the_classes_of_the_network(written, model):
    """The file gives what the network gives on the same tiles, at the borders of the image too."""
    image = draw_tissue((150, 170))
    content = json.loads((written[0] / 'pixel_classifier.json').read_text('utf-8'))
    network = ExportNetwork(model, 'float', 'probabilities')
    found = qupath_probabilities(load_torchscript(written[0] / 'model.pt'), image, content)
    expected = qupath_probabilities(network, image, content)
    assert np.abs(found.astype(int) - expected).max() <= 1  # of 255: the order of sums differs
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.999
    assert len(np.unique(found.argmax(0))) > 1
