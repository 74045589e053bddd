"""The BioImage.IO package: traps of QuPath's reader, weights that run, the test of bioimageio.core without a network."""

import socket
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from export_example import SIZE, exported, tiny_config, write_checkpoint, write_members
from PIL import Image

from mmseg_ignite.apis import Predictor
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.export import ExportNetwork, bioimageio_package
from mmseg_ignite.export.bioimageio_package import FILES, check, write
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.models.onnx_file import OnnxFile

pytestmark = pytest.mark.usefixtures('one_thread')


class Package:
    """A written package, its description, the model, and what the export reported."""

    def __init__(self, folder, cfg, checkpoint):
        self.folder, self.lines = folder, []
        self.exported = exported(cfg, checkpoint, self.lines.append)
        check(self.exported)
        write(folder, self.exported)
        self.rdf = yaml.safe_load((folder / 'rdf.yaml').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def cfg():
    return tiny_config()


@pytest.fixture(scope='module')
def checkpoint(cfg, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp('trained') / 'iter_7.pth', cfg)


@pytest.fixture(scope='module')
def package(cfg, checkpoint, tmp_path_factory):
    """Written without a network: bioimageio.core must download nothing."""

    def refuse(*_, **__):
        raise AssertionError('the export opened a connection')

    with pytest.MonkeyPatch.context() as patch:
        for name in ('connect', 'connect_ex'):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, 'getaddrinfo', refuse)
        patch.setattr(bioimageio_package, 'find_spec', without('onnx'))  # recording ONNX takes half a minute
        return Package(tmp_path_factory.mktemp('bioimageio'), cfg, checkpoint)


def without(*packages):
    """Return find_spec as if packages were not installed."""
    return lambda name: None if name.startswith(packages) else find_spec(name)


def axes(tensor):
    return {axis.get('id', axis['type']): axis for axis in tensor['axes']}


def test_required_fields_are_there_and_files_lie_beside_the_description(package):
    required = {'format_version', 'authors', 'description', 'documentation', 'license', 'name', 'inputs', 'weights'}
    assert required <= package.rdf.keys() and package.rdf['format_version'].startswith('0.5')
    names = {path.name for path in package.folder.iterdir()}
    assert names <= {*FILES} and FILES[0] == 'rdf.yaml' in names  # QuPath looks for rdf* or model*.yaml
    sources = [entry['source'] for entry in package.rdf['weights'].values()]
    sources += [package.rdf[key][0]['test_tensor']['source'] for key in ('inputs', 'outputs')]
    sources += [package.rdf['documentation'], *package.rdf['covers']]
    assert names >= {*sources} and all(Path(source).name == source for source in sources)


def test_one_image_in_and_one_out_with_axes_b_c_y_x(package):
    assert len(package.rdf['inputs']) == len(package.rdf['outputs']) == 1
    for key in ('inputs', 'outputs'):
        found = [axis.get('id', axis['type']) for axis in package.rdf[key][0]['axes']]
        assert found == ['batch', 'channel', 'y', 'x']


def test_normalisation_and_softmax_are_no_steps(package):
    text = (package.folder / 'rdf.yaml').read_text(encoding='utf-8')
    assert not any(step in text for step in ('preprocessing', 'postprocessing', 'zero_mean', 'softmax', 'fixed_'))


def test_size_references_state_their_offset_and_the_batch_has_no_size(package):
    text = (package.folder / 'rdf.yaml').read_text(encoding='utf-8')
    assert 'null' not in text and '~' not in text
    for key in ('inputs', 'outputs'):
        assert 'size' not in axes(package.rdf[key][0])['batch']
    for axis in 'yx':
        assert axes(package.rdf['inputs'][0])[axis]['size'] == SIZE
        assert axes(package.rdf['outputs'][0])[axis]['size'] == dict(tensor_id='input', axis_id=axis, offset=0)
        assert 'halo' not in axes(package.rdf['outputs'][0])[axis]


def test_pixels_have_their_size_and_channels_the_names_of_the_classes(package):
    for key in ('inputs', 'outputs'):
        for axis in 'yx':
            found = axes(package.rdf[key][0])[axis]
            assert (found['unit'], found['scale']) == ('micrometer', 0.5)
    assert axes(package.rdf['inputs'][0])['channel']['channel_names'] == ['red', 'green', 'blue']
    assert axes(package.rdf['outputs'][0])['channel']['channel_names'] == list(CLASSES)


def test_test_tensors_are_an_image_and_its_probabilities(package, cfg, checkpoint):
    image, probabilities = (np.load(package.folder / f'test_{name}.npy') for name in ('input', 'output'))
    assert image.shape == (1, 3, SIZE, SIZE) and image.dtype == np.float32 and image.max() > 1
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    labels = Predictor(cfg, checkpoint, 'cpu').predict(image[0].transpose(1, 2, 0).astype(np.uint8).copy())
    assert (probabilities[0].argmax(0) == labels).mean() > 0.999


def test_torchscript_computes_what_the_model_computes(package):
    network = ExportNetwork(package.exported.model, 'float', 'probabilities')
    module = torch.jit.load(package.folder / 'model.pt')
    for batch in (1, 3):
        x = torch.rand(batch, 3, SIZE, SIZE) * 255
        torch.testing.assert_close(module(x), network(x), atol=1e-5, rtol=1e-4)


def test_cover_is_twice_as_wide_as_high_and_small(package):
    with Image.open(package.folder / 'cover.png') as cover:
        assert cover.size[0] == 2 * cover.size[1]
    assert (package.folder / 'cover.png').stat().st_size < 500_000


def test_package_has_no_patients_and_no_paths_of_the_machine(package):
    for name in ('rdf.yaml', 'MODEL_CARD.md'):
        text = (package.folder / name).read_text(encoding='utf-8')
        assert not any(secret in text for secret in ('anna', 'dora', '/home', '/tmp', 'nowhere')), name


def test_bioimageio_core_accepts_the_package_and_runs_its_weights(package):
    pytest.importorskip('bioimageio.core', reason='bioimageio.core is not installed')
    said = ' '.join(package.lines)
    if 'do not fit each other' in said:
        pytest.skip('the installed bioimageio.spec does not run with the installed pydantic (2.14 or newer)')
    assert 'passes the test of bioimageio.core' in said and 'torchscript' in said.split('passes')[1]


@pytest.mark.slow
def test_onnx_weights_run_and_are_accepted(cfg, checkpoint, tmp_path):
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name, reason=f'{name} is not installed')
    package = Package(tmp_path, cfg, checkpoint)
    entry = package.rdf['weights']['onnx']
    session = pytest.importorskip('onnxruntime').InferenceSession(str(tmp_path / entry['source']))
    x = torch.rand(1, 3, SIZE, SIZE) * 255
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert OnnxFile.read(tmp_path / entry['source']).inputs == 'float'  # tools/predict.py takes it
    network = ExportNetwork(package.exported.model, 'float', 'probabilities')
    assert np.abs(found - network(x).detach().numpy()).max() < 1e-4
    assert entry['parent'] == 'torchscript' and entry['opset_version'] > 10
    assert any('passes' in line and 'onnx' in line or 'was not validated' in line for line in package.lines)


def test_a_package_that_is_not_valid_is_refused(package, tmp_path, monkeypatch):
    pytest.importorskip('bioimageio.core', reason='bioimageio.core is not installed')
    if any('do not fit each other' in line for line in package.lines):
        pytest.skip('the installed bioimageio.spec does not run with the installed pydantic (2.14 or newer)')
    monkeypatch.setattr(bioimageio_package, 'find_spec', without('onnx'))
    real = bioimageio_package._description
    monkeypatch.setattr(bioimageio_package, '_description', lambda *a: dict(real(*a), license='none of the list'))
    with pytest.raises(IgniteError, match='does not pass the test of bioimageio.core'):
        write(tmp_path, package.exported)


def test_missing_libraries_are_reported(package, tmp_path, monkeypatch):
    monkeypatch.setattr(bioimageio_package, 'find_spec', without('onnx', 'bioimageio'))
    lines = []
    write(tmp_path, package.exported.__class__(**{**vars(package.exported), 'report': lines.append}))
    assert any('was not validated' in line and 'mmseg_ignite[bioimageio]' in line for line in lines)
    assert any('no ONNX weights' in line for line in lines) and not (tmp_path / 'model.onnx').exists()


def test_ensemble_is_one_network(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(bioimageio_package, 'find_spec', lambda name: None)
    folder = tmp_path / 'package'
    folder.mkdir()
    model = exported(cfg, write_members(tmp_path / 'folds', cfg))
    write(folder, model)
    x = torch.rand(1, 3, SIZE, SIZE) * 255
    torch.testing.assert_close(
        torch.jit.load(folder / 'model.pt')(x),
        ExportNetwork(model.model, 'float', 'probabilities')(x),
        atol=1e-5,
        rtol=1e-4,
    )
