"""The ONNX graph of a network: any size, no trace of this machine, equal to torch; a sentence where that fails."""

import json
import logging
import warnings

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.export import ExportNetwork, onnx_graph, onnx_package
from mmseg_ignite.export.comparison import as_input, compare, example_inputs
from mmseg_ignite.export.onnx_graph import check_onnx, write_onnx
from mmseg_ignite.models.onnx_file import OnnxFile

for package in ('onnx', 'onnxruntime', 'onnxscript'):
    pytest.importorskip(package, reason='the packages of mmseg_ignite[export] are not installed')
import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402

pytestmark = pytest.mark.usefixtures('one_thread')
SIZES = ((1, 32, 32), (2, 64, 96), (3, 65, 47), (1, 127, 161))


class Encoder(nn.Module):
    """One map at half the size: recording takes a second for a few operators."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x):
        return [self.layer(x).relu()]


@pytest.fixture(scope='module')
def model():
    """An ensemble of two small networks with FastSegformerHead, whose normalisations have seen some data."""
    init_default_scope('mmseg')
    if 'OnnxTestEncoder' not in MODELS:
        MODELS.register_module(module=Encoder, name='OnnxTestEncoder')
    head = dict(type='FastSegformerHead', in_channels=[4], in_index=[0], channels=8, num_classes=16)
    head |= dict(norm_cfg=dict(type='BN'), align_corners=False, loss_decode=dict(type='TissueLoss'))
    preprocessor = dict(type='TissueDataPreProcessor', mean=[120.0, 110, 100], std=[50.0, 60, 70], bgr_to_rgb=True)
    cfg = dict(type='TissueEnsemble', size=2, backbone=dict(type='OnnxTestEncoder'), decode_head=head)
    model = MODELS.build(dict(cfg, data_preprocessor=preprocessor))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(), module.running_var.uniform_(0.5, 2), module.bias.normal_()
    return model.eval()


@pytest.fixture(scope='module')
def graph(model, tmp_path_factory):
    """The network and its file, uint8 (N, H, W, 3) in and logits out."""
    network, path = ExportNetwork(model, 'nhwc', 'logits'), tmp_path_factory.mktemp('onnx') / 'model.onnx'
    facts = dict(classes=[str(i) for i in range(16)], um_per_px=0.5, channel_order='RGB', mean=[0, 0, 0], std=[1, 1, 1])
    facts |= dict(inputs='nhwc', outputs='logits')
    write_onnx(path, network, {key: json.dumps(value) for key, value in facts.items()})
    return network, path


def inputs(network):
    image = np.random.default_rng().integers(0, 256, (70, 90, 3), np.uint8)
    return example_inputs(network, [image], SIZES)


def test_runtime_and_torch_agree_at_any_size(graph):
    network, path = graph
    session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
    agreement = compare(network, lambda x: session.run(['logits'], {'image': x})[0], inputs(network), 'model.onnx')
    assert agreement.inputs == 5 and agreement.difference < 1e-4


def test_openvino_and_torch_agree(graph):
    openvino = pytest.importorskip('openvino', reason='openvino is not installed')
    network, path = graph
    compiled = openvino.Core().compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    compare(network, lambda x: compiled(x)[0], inputs(network), 'model.onnx')


def test_graph_is_checked_named_folded_and_without_paths(graph):
    _, path = graph
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    sizes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input
    ]
    assert sizes == [['batch', 'height', 'width', 3]]
    output = model.graph.output[0]
    assert [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim] == [
        'batch',
        16,
        'height',
        'width',
    ]
    kinds = {node.op_type for node in model.graph.node}
    assert 'Conv' in kinds and 'BatchNormalization' not in kinds and not model.functions
    content = path.read_bytes()
    assert b'.py' not in content and b'mmseg' not in content and b'/home' not in content
    assert [entry.name for entry in path.parent.iterdir()] == ['model.onnx']  # weights inside
    assert OnnxFile.read(path).inputs == 'nhwc'


def test_a_graph_that_computes_something_else_is_refused(graph):
    network, path = graph
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(
        onnx.numpy_helper.from_array(np.random.default_rng().normal(size=values.shape).astype('f4'), tensor.name)
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    with pytest.raises(IgniteError, match='does not compute what the model computes'):
        compare(network, lambda x: session.run(None, {'image': x})[0], inputs(network), 'model.onnx')


@pytest.mark.parametrize('kind', ['normalised', 'float', 'nchw', 'nhwc'])
def test_code_in_the_readme_gives_the_labels(kind, model, tmp_path, monkeypatch):
    """The code is run with a session that is the network itself, since recording each kind takes long."""
    from PIL import Image

    from mmseg_ignite.export.packages import Exported

    network = ExportNetwork(model, kind, 'logits')
    image = np.random.default_rng().integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / 'roi.png')
    known = dict(name='b0', um_per_px=0.5, channel_order='RGB', mean=(120.0, 110.0, 100.0), std=(50.0, 60.0, 70.0))
    description = type('Description', (), dict(known, classes=('A', 'B'), window=(64, 64), stride=(48, 48)))
    text = onnx_package._readme(Exported(model, description, (), '', inputs=kind))

    class Session:
        def __init__(self, path):
            assert path == 'model.onnx'

        def run(self, names, feeds):
            with torch.no_grad():
                return [network(torch.from_numpy(np.ascontiguousarray(feeds['image']))).numpy()]

    monkeypatch.setattr(ort, 'InferenceSession', Session)
    monkeypatch.chdir(tmp_path)
    code = '\n'.join(line[4:] for line in text.splitlines() if line.startswith('    '))
    found = {}
    exec(code, found)
    with torch.no_grad():
        expected = network(as_input(network, torch.from_numpy(image)[None])).argmax(1)[0].numpy()
    assert np.array_equal(found['labels'], expected) and 'windows of 64 x 64 px every 48 x 48 px' in text


def test_what_cannot_be_recorded_is_one_sentence(model, tmp_path, monkeypatch, capfd):
    network = ExportNetwork(model)

    def fail(*arguments, **options):
        print('chatter')
        warnings.warn('chatter')
        logging.getLogger('onnxscript.optimizer').warning('chatter')
        raise RuntimeError('Could not guard on data-dependent expression\nand a page of advice')

    monkeypatch.setattr('torch.onnx.export', fail)
    with pytest.raises(IgniteError, match='cannot be recorded as an ONNX graph .*dependent expression.: ') as error:
        write_onnx(tmp_path / 'x.onnx', network, {})
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())
    assert capfd.readouterr() == ('', '')


def test_weights_above_two_gigabytes_and_missing_libraries(model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(onnx_graph, 'MAX_BYTES', 1000)
        with pytest.raises(IgniteError, match='fit into one ONNX file'):
            check_onnx(ExportNetwork(model))
    for package in ('onnx', 'onnxscript'):
        with monkeypatch.context() as patch:
            patch.setitem(__import__('sys').modules, package, None)
            with pytest.raises(IgniteError, match=rf'{package} .*mmseg_ignite\[export\]'):
                check_onnx(ExportNetwork(model))
