"""ONNX graphs in place of checkpoints: the tiling of a checkpoint, and one sentence for each file that cannot be used."""

import copy
import sys

import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, ROOT, single_error, tool

from mmseg_ignite.apis import Predictor, load_config
from mmseg_ignite.engine.ensembles import Ensemble, write_ensemble
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.models import onnx_file
from mmseg_ignite.models.onnx_file import OnnxFile, provider_of
from mmseg_ignite.models.segmentors import OnnxSegmentor

for package in ('onnx', 'onnxruntime'):
    pytest.importorskip(package, reason='the packages of mmseg_ignite[export] are not installed')
sys.path.insert(0, str(ROOT / 'tests' / 'models'))
import onnx  # noqa: E402
import onnx_graphs  # noqa: E402
from onnx import external_data_helper, helper  # noqa: E402

pytestmark = pytest.mark.usefixtures('one_thread')
SLIDE = dict(mode='slide', crop_size=(48, 64), stride=(32, 40), window_batch=3)


@pytest.fixture
def rng():
    return np.random.default_rng()


@pytest.fixture(scope='module')
def config():
    return load_config(DEMO_CONFIG)


def picture(rng, height=97, width=131):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize('outputs', ['logits', 'probabilities'])
@pytest.mark.parametrize('order', ['RGB', 'BGR'])
@pytest.mark.parametrize('inputs', onnx_file.INPUTS)
def test_every_kind_of_input_and_output_gives_the_labels_of_numpy(inputs, outputs, order, rng, tmp_path):
    path, weight, bias = onnx_graphs.written(tmp_path / 'g.onnx', rng, inputs, outputs, order)
    image = picture(rng)
    logits = onnx_graphs.reference(image, weight, bias, order)
    for settings in (SLIDE, dict(mode='whole'), dict(SLIDE, symmetries=8, weights='gaussian')):
        labels = OnnxSegmentor(path, test_cfg=settings).eval().label_image(image)
        assert (labels == logits.argmax(-1)).mean() > 0.999, settings


def test_maps_of_probabilities(rng, tmp_path):
    path, weight, bias = onnx_graphs.written(tmp_path / 'g.onnx', rng, 'nhwc', 'probabilities')
    image, maps = picture(rng), [np.zeros((97, 131), np.uint8) for _ in CLASSES]
    OnnxSegmentor(path, test_cfg=SLIDE).eval().label_image(image, maps=dict(probability=maps))
    powers = np.exp(onnx_graphs.reference(image, weight, bias))
    expected = powers / powers.sum(-1, keepdims=True)
    assert np.abs(np.stack(maps, -1) / 255 - expected).max() < 0.01


def test_predictor_takes_resolution_from_the_file_and_windows_from_the_config(config, rng, tmp_path):
    path, weight, bias = onnx_graphs.written(tmp_path / 'G.ONNX', rng, um_per_px=0.25)
    predictor = Predictor(config, path, device='cpu')
    assert (predictor.um_per_px, predictor.um_per_px_source) == (0.25, 'checkpoint')
    assert predictor.engine == f'onnxruntime {onnx_file.runtime().__version__}'
    assert predictor.model.test_cfg['crop_size'] == config.model.test_cfg['crop_size']
    image = picture(rng)
    logits = onnx_graphs.reference(image, weight, bias)
    assert (predictor.predict(image, um_per_px=0.25) == logits.argmax(-1)).mean() > 0.999


def test_threads_are_those_of_torch(rng, tmp_path):
    path, *_ = onnx_graphs.written(tmp_path / 'g.onnx', rng)
    session = OnnxSegmentor(path).session
    assert session.get_session_options().intra_op_num_threads == torch.get_num_threads()
    assert session.get_providers() == [onnx_file.CPU]


def _truncated(path, rng):
    onnx_graphs.written(path, rng)
    path.write_bytes(path.read_bytes()[:-40])


def _external(path, rng):
    """Weights in a file outside the folder, as a hostile file could name any."""
    secret = path.parent.parent / 'secret.bin'
    weight, bias = onnx_graphs.weights(rng)
    secret.write_bytes(weight.tobytes())
    model = onnx_graphs.graph(weight, bias)
    tensor = model.graph.initializer[0]
    external_data_helper.set_external_data(tensor, '../secret.bin')
    tensor.ClearField('raw_data')
    helper.set_model_props(model, onnx_graphs.metadata())
    path.write_bytes(model.SerializeToString())


def _changed(inputs='normalised', outputs='logits', **changes):
    return lambda path, rng: onnx_graphs.written(path, rng, inputs, outputs, **changes)


def _with_graph(change, **facts):
    def write(path, rng):
        model = onnx_graphs.graph(*onnx_graphs.weights(rng))
        change(model)
        onnx_graphs.save(path, model, onnx_graphs.metadata(**facts))

    return write


def _custom(model):
    model.graph.node[0].op_type, model.graph.node[0].domain = 'Evil', 'com.evil'
    model.opset_import.append(helper.make_opsetid('com.evil', 1))


def _fixed(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 512


def _second_input(model):
    model.graph.input.append(helper.make_tensor_value_info('more', onnx.TensorProto.FLOAT, (1,)))


BAD = {
    'labels': (_changed(outputs='labels'), 'returns labels'),
    'foreign': (lambda path, rng: onnx.save(onnx_graphs.graph(*onnx_graphs.weights(rng)), path), 'does not state its'),
    'text': (lambda path, rng: path.write_text('no graph'), 'is damaged or no ONNX file'),
    'empty': (lambda path, rng: path.touch(), 'does not state its classes'),
    'truncated': (_truncated, 'is damaged or no ONNX file'),
    'missing': (lambda path, rng: None, 'is not a file'),
    'external data': (_external, 'in another file (../secret.bin)'),
    'custom operator': (_with_graph(_custom), 'cannot load'),
    'fixed size': (_with_graph(_fixed), 'has the input FLOAT (?, 3, 512, ?)'),
    'two inputs': (_with_graph(_second_input), 'and FLOAT (1)'),
    'another kind': (_with_graph(lambda model: None, inputs='nhwc'), 'UINT8 (?, ?, ?, 3) was expected'),
    'fewer classes': (_changed(classes=CLASSES[:3]), 'has the output FLOAT (?, 16, ?, ?)'),
    'other classes': (_changed(classes=CLASSES[::-1]), f'has {CLASSES[-1]!r} as class 0'),
    'resolution': (_changed(um_per_px=0), 'has 0 as um_per_px'),
    'standard deviation': (_changed(std=[0, 1, 1]), 'as std; three numbers above 0'),
    'kind': (_changed(inputs='normalised') and _with_graph(lambda m: None, inputs=['x']), 'as inputs; one of'),
    'deep metadata': (_with_graph(lambda m: None, mean=None), 'does not state its mean'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_file_that_cannot_be_used_is_one_sentence(name, config, rng, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr('mmseg_ignite.apis.load_config', lambda *_: copy.deepcopy(config))
    write, text = BAD[name]
    (tmp_path / 'in').mkdir()
    write(tmp_path / 'in' / 'bad.onnx', rng)
    (tmp_path / 'a.npy').write_bytes(b'')
    np.save(tmp_path / 'a.npy', picture(rng))
    status = tool('predict', DEMO_CONFIG, tmp_path / 'in' / 'bad.onnx', tmp_path / 'a.npy', '--out', tmp_path / 'out')
    error = single_error(capfd)
    assert status == 2 and text in error and str(tmp_path / 'in' / 'bad.onnx') in error
    assert error.strip().count('\n') == 0 and not list((tmp_path / 'out').glob('*'))


def test_metadata_that_is_no_json(rng, tmp_path):
    model = onnx_graphs.graph(*onnx_graphs.weights(rng))
    for text, message in (
        ('[' * 100_000, 'nested too deeply'),
        ('{', 'not valid JSON'),
        (f'"{"x" * 2**20}"', 'characters'),
    ):
        onnx_graphs.save(tmp_path / 'g.onnx', model, dict(onnx_graphs.metadata(), mean=text))
        with pytest.raises(IgniteError, match=message):
            OnnxFile.read(tmp_path / 'g.onnx')


def test_external_data_in_a_subgraph_is_found(rng, tmp_path):
    model = onnx_graphs.graph(*onnx_graphs.weights(rng))
    tensor = onnx.numpy_helper.from_array(np.zeros(3, np.float32), 'inner')
    external_data_helper.set_external_data(tensor, '/etc/passwd')
    inner = helper.make_graph([], 'inner', [], [], [tensor])
    model.graph.node.append(helper.make_node('If', ['c'], ['y'], then_branch=inner, else_branch=inner))
    onnx_graphs.save(tmp_path / 'g.onnx', model, onnx_graphs.metadata())
    with pytest.raises(IgniteError, match='in another file .*passwd'):
        OnnxFile.read(tmp_path / 'g.onnx')


def test_a_graph_of_another_size_is_refused_when_it_runs(rng, tmp_path):
    """Stated sizes are names only, so a graph may return other ones; they never reach memory that is not theirs."""
    model = onnx_graphs.graph(*onnx_graphs.weights(rng))
    model.graph.node[-1].attribute.append(helper.make_attribute('strides', [2, 2]))
    path = onnx_graphs.save(tmp_path / 'g.onnx', model, onnx_graphs.metadata())
    with pytest.raises(IgniteError, match='cannot be applied to 3 images of 48 x 64 px'):
        OnnxSegmentor(path, test_cfg=SLIDE).eval().label_image(picture(rng))


def test_missing_runtime_amp_device_and_training(config, rng, tmp_path, monkeypatch):
    path, *_ = onnx_graphs.written(tmp_path / 'g.onnx', rng)
    with pytest.raises(IgniteError, match='precision is fixed: leave out --amp'):
        Predictor(config, path, amp=True)
    with pytest.raises(IgniteError, match='leave out --compile'):
        Predictor(config, path, device='cpu', compile=True)
    for name in ('cuda:0', 'mps'):
        with pytest.raises(IgniteError, match=f'cannot use the device {name}.*pass --device cpu'):
            provider_of(torch.device(name))
    model = OnnxSegmentor(path)
    with pytest.raises(IgniteError, match='cannot be trained'):
        model.loss(None, None)
    for package in ('onnxruntime', 'onnx'):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(IgniteError, match=rf'{package} .*mmseg_ignite\[export\]'):
                Predictor(config, path, device='cpu')


def test_a_gpu_that_onnx_runtime_cannot_use(config, rng, tmp_path, monkeypatch):
    path, *_ = onnx_graphs.written(tmp_path / 'g.onnx', rng)
    monkeypatch.setattr('mmseg_ignite.apis.onnx_prediction.find_device', lambda name: torch.device('cuda:0'))
    with pytest.warns(UserWarning, match='cannot use cuda:0, so .* runs on the CPU'):
        assert Predictor(config, path).device == torch.device('cpu')
    with pytest.raises(IgniteError, match='cannot use the device cuda:0: install onnxruntime-gpu'):
        Predictor(config, path, device='cuda:0')


@pytest.mark.parametrize(
    'arguments',
    [('test', '{path}'), ('export', '{path}', '--out', '{out}'), ('train', '--weights', '{path}')],
    ids=lambda arguments: arguments[0],
)
def test_other_tools_want_a_checkpoint(arguments, config, rng, tmp_path, prepared, capsys):
    path, *_ = onnx_graphs.written(tmp_path / 'g.onnx', rng)
    name, *rest = [part.format(path=path, out=tmp_path / 'out') for part in arguments]
    options = ['--work-dir', tmp_path / 'work'] if name != 'export' else []
    status = tool(name, DEMO_CONFIG, *rest, *options, '--cfg-options', f'data_root={prepared}')
    error = single_error(capsys)
    assert status == 2 and 'is an ONNX graph, which only tools/predict.py takes' in error and str(path) in error


def test_a_graph_is_no_member_of_an_ensemble(config, rng, tmp_path):
    paths = [onnx_graphs.written(tmp_path / f'{number}.onnx', rng)[0] for number in range(2)]
    write_ensemble(tmp_path / 'both.json', paths)
    with pytest.raises(IgniteError, match='0.onnx is an ONNX graph'):
        Predictor(config, tmp_path / 'both.json', device='cpu')
    with pytest.raises(IgniteError, match='is an ONNX graph'):
        Ensemble.read(paths[0]).metas()


def test_weights_that_are_no_numbers_and_files_that_are_too_large(rng, tmp_path):
    path, _, _ = onnx_graphs.written(tmp_path / 'g.onnx', rng)
    model = onnx.load(path)
    wrong = onnx.numpy_helper.from_array(np.full_like(onnx.numpy_helper.to_array(model.graph.initializer[0]), np.nan))
    model.graph.initializer[0].raw_data = wrong.raw_data
    onnx.save(model, path)
    with pytest.raises(IgniteError, match='NaN'):
        OnnxFile.read(path)
    with open(path, 'r+b') as stream:
        stream.truncate(1 << 36)  # takes no space on the disk
    with pytest.raises(IgniteError, match='at most 2 GB'):
        OnnxFile.read(path)
