"""Compiled networks: compiled once, the labels of eager ones, and used if they pay."""

import copy
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, ROOT, single_error, small_config, tool
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch._dynamo.testing import CompileCounterWithBackend

from mmseg_ignite.apis import Predictor, load_config, predict_files, testing
from mmseg_ignite.engine import compiled_inference
from mmseg_ignite.engine.compiled_inference import Compilation
from mmseg_ignite.engine.ensembles import write_ensemble
from mmseg_ignite.errors import IgniteError

pytestmark = pytest.mark.usefixtures('one_thread')


def small_network(cfg):
    """Make the network of a config one stage of one block, with windows of 64 px: tracing takes seconds."""
    stages = dict(num_stages=1, num_layers=[1], num_heads=[1], patch_sizes=[7], strides=[4])
    cfg.model.backbone.update(init_cfg=None, embed_dims=8, sr_ratios=[8], out_indices=(0,), **stages)
    cfg.model.decode_head.update(in_channels=[8], in_index=[0], channels=8)
    cfg.model.data_preprocessor.size = None
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(48, 48))
    return cfg


@pytest.fixture(scope='module')
def config():
    return small_network(load_config(DEMO_CONFIG))


@pytest.fixture(scope='module')
def checkpoints(config, tmp_path_factory):
    """Two networks with random weights, and an ensemble of them."""
    init_default_scope('mmseg')
    folder = tmp_path_factory.mktemp('models')
    for number in range(2):
        torch.manual_seed(number)
        state = MODELS.build(config.model).state_dict()
        state['decode_head.conv_seg.weight'] *= 50
        torch.save(dict(state_dict=state, meta={}), folder / f'{number}.pth')
    write_ensemble(folder / 'all.json', [folder / f'{number}.pth' for number in range(2)])
    return folder


@pytest.fixture
def counter(monkeypatch):
    """A backend that runs the traced graphs and counts them."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backend = CompileCounterWithBackend('eager')
    monkeypatch.setattr(compiled_inference, 'BACKEND', backend)
    yield backend
    torch._dynamo.reset()


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def predictor_of(config, checkpoint, compile=True, **options):
    options.setdefault('window_batch', 4)
    return Predictor(config, checkpoint, 'cpu', compile=compile, **options)


@pytest.mark.parametrize(
    ('options', 'checkpoint', 'graphs'),
    [
        (dict(amp=True, symmetries=8), '0.pth', 2),
        (dict(symmetries=4, window_batch=3), '0.pth', 2),  # flipped copies in groups of 3 and 1
        (dict(), 'all.json', 4),
    ],
)
def test_images_of_any_size_are_compiled_for_once(config, checkpoints, counter, options, checkpoint, graphs):
    """Encoder and decoder of each network are one graph each, and none is compiled again."""
    compiled, eager = (predictor_of(config, checkpoints / checkpoint, c, **options) for c in (True, False))
    calls = spied(compiled)
    for number, size in enumerate([(64, 260), (45, 70), (100, 208)]):
        image = picture(*size, seed=number)
        found, expected = compiled.predict(image), eager.predict(image)
        assert (found == expected).mean() > (0.98 if 'amp' in options else 0.999)
    assert counter.frame_count <= graphs
    assert not torch._dynamo.utils.counters['graph_break']
    assert calls.count(True) >= 3 and calls.count(False) >= 2


def spied(predictor):
    """Return a list to which each call of the first encoder adds whether it ran the compiled one."""
    forward, calls = vars(predictor.model.backbone)['forward'], []
    for name in ('compiled', 'eager'):
        setattr(forward, name, recorded(getattr(forward, name), calls, name == 'compiled'))
    return calls


def recorded(function, calls, value):
    def call(inputs):
        calls.append(value)
        return function(inputs)

    return call


class Clock:
    """Times that a decision measures."""

    def __init__(self, monkeypatch, eager, compiled, head):
        self.compiled = []
        monkeypatch.setattr(Compilation, '_timed', lambda own, batch: compiled if self.compiled else eager)
        monkeypatch.setattr(Compilation, '_check', lambda own, batch, expected: None)
        monkeypatch.setattr(Compilation, '_logits', lambda own, batch: [])

        def compile(own, part, batch):
            self.compiled.append(part)
            own.seconds['compiling'] = own.seconds.get('compiling', 0.0) + head

        monkeypatch.setattr(Compilation, '_compile', compile)


@pytest.mark.parametrize(
    ('windows', 'further', 'eager', 'compiled', 'head', 'parts', 'said'),
    [
        (100, 0, 1.0, 0.8, 5, [], ''),  # 25 batches: not even measured
        (4000, 0, 0.09, 0.07, 5, [], 'off; it may save about 4 s of 90 s, and takes more than 10 s'),
        (4000, 2, 0.09, 0.07, 8, ['decode_head'], 'off; it may save about 14 s of 270 s, and takes about'),
        (40000, 0, 0.09, 0.07, 5, ['decode_head', 'backbone'], 'on after 10 s; a batch takes 0.07 s instead of 0.09 s'),
        (40000, 0, 0.09, 0.089, 5, ['decode_head', 'backbone'], 'off; a batch takes 0.089 s instead of 0.09 s'),
        (4000, 200, 0.005, 0.002, 5, ['decode_head', 'backbone'], 'on after 10 s'),  # a GPU, a hundred slides
        (4000, 0, 0.005, 0.002, 5, [], 'off; it may save about 0 s of 5 s'),
    ],
)
def test_compiled_if_it_pays(config, checkpoints, monkeypatch, windows, further, eager, compiled, head, parts, said):
    clock, lines = Clock(monkeypatch, eager, compiled, head), []
    compilation = predictor_of(config, checkpoints / '0.pth', compile=None).compilation
    compilation.report, compilation.further = lines.append, further
    for _ in range(3):  # decided, and said, once
        compilation.decide(windows)
    assert clock.compiled == parts and compilation.active == said.startswith('on')
    assert [line.startswith(f'compilation: {said}') for line in lines] == ([True] if said else [])
    assert compilation.record()['active'] == compilation.active and (compilation.reason or not said)
    json.dumps(compilation.record())


def test_small_slides_do_not_decide_for_large_ones(config, checkpoints, monkeypatch):
    clock = Clock(monkeypatch, 0.1, 0.08, 1)
    compilation = predictor_of(config, checkpoints / '0.pth', compile=None).compilation
    compilation.report = lambda text: None
    for windows, parts in ((400, []), (2000, []), (40000, ['decode_head', 'backbone'])):
        compilation.decide(windows)
        assert clock.compiled == parts


def broken(graph, inputs):
    raise RuntimeError('No working C++ compiler found\nand more')


def test_without_a_compiler(config, checkpoints, counter, monkeypatch):
    monkeypatch.setattr(compiled_inference, 'BACKEND', broken)
    with pytest.raises(
        IgniteError, match=r'cannot be compiled \(.*No working C\+\+ compiler found\): install'
    ) as error:
        predictor_of(config, checkpoints / '0.pth')
    assert '\n' not in str(error.value)
    predictor, lines = predictor_of(config, checkpoints / '0.pth', compile=None), []
    predictor.compilation.report = lines.append
    monkeypatch.setattr(compiled_inference, 'LEAST_SECONDS', 0.0)
    with torch.inference_mode():
        predictor.compilation.decide(10**6)
    assert len(lines) == 1 and lines[0].startswith('compilation: off; the networks cannot be compiled (')
    assert 'forward' not in vars(predictor.model.backbone) and 'forward' not in vars(predictor.model.decode_head)
    predictor.predict(picture(64, 64))


def test_wrong_results_are_refused(config, checkpoints, monkeypatch):
    compilation = predictor_of(config, checkpoints / '0.pth', compile=None).compilation
    real = Compilation._logits
    monkeypatch.setattr(Compilation, '_compile', lambda own, *_: None)
    found = iter((1.0, 1.1))
    monkeypatch.setattr(Compilation, '_logits', lambda own, batch: [next(found) * x for x in real(own, batch)])
    with torch.inference_mode(), pytest.raises(IgniteError, match='differ from the eager ones by 0.1 of their size'):
        compilation.compile()
    assert not compilation.active


def test_whole_images_are_not_compiled_for(config, checkpoints):
    cfg = copy.deepcopy(config)
    cfg.model.test_cfg = dict(mode='whole')
    with pytest.raises(IgniteError, match='model.test_cfg.mode is not "slide"'):
        predictor_of(cfg, checkpoints / '0.pth')


def test_the_tool_records_it_and_finished_results_stay(config, checkpoints, counter, tmp_path, monkeypatch, capsys):
    """Compiled or not, results are the same but for rounding: nothing is predicted again."""
    monkeypatch.setattr('mmseg_ignite.apis.load_config', lambda *_: copy.deepcopy(config))
    np.save(tmp_path / 'a.npy', picture(64, 260))
    arguments = [DEMO_CONFIG, checkpoints / '0.pth', tmp_path / 'a.npy', '--out', tmp_path / 'out', '--device', 'cpu']
    arguments += ['--formats', 'label', '--mpp', '0.5']
    assert tool('predict', *arguments, '--compile') == 0
    run = json.loads((tmp_path / 'out' / 'run.json').read_text())
    assert run['compilation']['active'] and run['compilation']['seconds']['compiling'] > 0
    assert run['images'][0]['compiled']
    capsys.readouterr()
    assert tool('predict', *arguments, '--no-compile') == 0
    assert 'is finished already' in capsys.readouterr().out
    run = json.loads((tmp_path / 'out' / 'run.json').read_text())
    assert run['compilation'] == dict(active=False, reason='not asked for', seconds={}) and run['images'][0]['compiled']
    monkeypatch.setattr(compiled_inference, 'BACKEND', broken)
    assert tool('predict', *arguments, '--compile', '--overwrite') == 2
    assert 'cannot be compiled' in single_error(capsys)


def test_slides_decide_by_their_windows_and_those_to_come(config, checkpoints, tmp_path, monkeypatch):
    pytest.importorskip('openslide', reason='the packages of mmseg_ignite[slides] are not installed')
    sys.path.insert(0, str(ROOT / 'tests' / 'slides'))
    from slide_example import write_slide

    asked = []
    monkeypatch.setattr(Compilation, 'decide', lambda own, windows: asked.append((windows, own.further)))
    for name in 'ab':
        write_slide(tmp_path / f'{name}.svs', (200, 260), 1.0, 0.5, levels=(1,), tile=64)
    np.save(tmp_path / 'c.npy', picture(64, 64))
    inputs = [tmp_path / name for name in ('a.svs', 'b.svs', 'c.npy')]
    predictor = predictor_of(config, checkpoints / '0.pth', compile=None)
    assert not predict_files(predictor, inputs, tmp_path / 'out', lambda text: None, formats=('label',), um_per_px=0.5)
    run = json.loads((tmp_path / 'out' / 'run.json').read_text())
    windows = {entry['file'].rpartition('/')[2]: entry['windows'] for entry in run['images']}
    assert asked == [(windows['a.svs'], 1), (windows['b.svs'], 0)]


def test_scores_of_compiled_networks(config, checkpoints, counter, prepared, tmp_path, no_figures):
    scores = []
    for compile in (False, True):
        cfg = small_network(small_config(prepared, tmp_path / str(compile)))
        scores.append(testing.test(cfg, checkpoints / '0.pth', report=None, compile=compile))
    assert counter.frame_count == 2
    assert scores[1]['provenance']['compiled'] and 'compiled' not in scores[0]['provenance']
    assert scores[1]['mIoU'] == pytest.approx(scores[0]['mIoU'], abs=0.01)


class Few(torch.nn.Module):
    """A decoder of one kernel, since each takes seconds."""

    def forward(self, maps):
        return maps[0].sigmoid() * 2 - maps[0]


@pytest.mark.skipif(shutil.which('g++') is None, reason='no C++ compiler')
def test_inductor_agrees(config, checkpoints):
    """The compiler that users get."""
    compilation = predictor_of(config, checkpoints / '0.pth', compile=None).compilation
    compilation.model.decode_head = Few()
    with torch.inference_mode():
        batch = compilation._batch()
        expected = compilation._logits(batch)
        compilation._compile('decode_head', batch)
        assert isinstance(compilation.model.decode_head.forward, compiled_inference._OneShape)
        (found,) = compilation._logits(batch)
    assert (found - expected[0]).abs().max() < 1e-4 * expected[0].abs().max()
    assert (found.argmax(1) == expected[0].argmax(1)).float().mean() > 0.9999
