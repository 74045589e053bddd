"""tools/convert_weights.py, and --weights of a training with files of all layouts and formats."""

import copy
import resource
import signal

import numpy as np
import pytest
import torch
from conftest import single_error, small_config, tool
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from tiny_segformer import WIDTHS, theirs, tiny_config, tiny_segformer
from torchvision_shim import import_or_skip

from mmseg_ignite.apis import Predictor, convert_weights, train
from mmseg_ignite.apis import test as score
from mmseg_ignite.engine import open_checkpoint, safe_checkpoints, set_encoder_weights
from mmseg_ignite.engine.checkpoints import write_safetensors
from mmseg_ignite.engine.encoder_weights import inherit_records
from mmseg_ignite.engine.training_record import TrainingRecord
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.files import sha256

META = dict(iter=7, **TrainingRecord(['1', '2'], ['3']).as_meta())


@pytest.fixture(scope='module')
def model():
    return tiny_segformer()


@pytest.fixture
def source(model, tmp_path):
    write_safetensors(tmp_path / 'ours.safetensors', model.state_dict(), META)
    return tmp_path / 'ours.safetensors'


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_round_trip_through_all_layouts_and_formats(model, source, tmp_path, capsys):
    steps = [('a.pth', 'authors'), ('h.safetensors', 'huggingface'), ('b.bin', 'huggingface'), ('m.pth', 'mmseg')]
    for name, layout in steps:
        assert tool('convert_weights', source, tmp_path / name, '--to', layout) == 0
        source = tmp_path / name
    output = capsys.readouterr().out
    assert 'found: MiT with 8, 16, 40, 64 channels in 2, 2, 2, 2 blocks, whole model, 16 classes, plain head' in output
    assert 'left out: the record of its training' in output and 'model.decode_head.plain=True' in output
    assert same(open_checkpoint(source)['state_dict'], dict(model.state_dict()))
    assert open_checkpoint(tmp_path / 'h.safetensors')['meta']['iter'] == 7  # through the .pth of the authors' names
    assert 'state_dict' not in torch.load(tmp_path / 'b.bin')  # as Hugging Face stores it


def test_refusals_leave_all_files_as_they_are(source, tmp_path, capsys):
    stock = tmp_path / 'stock.pth'
    torch.save(tiny_segformer(plain=False).state_dict(), stock)
    torch.save({'layers.0.0.projection.weight': torch.ones(8, 3, 7, 7)}, tmp_path / 'part.pth')
    (tmp_path / 'foreign.pth').write_bytes(b'mine')
    (tmp_path / 'link.pth').symlink_to(source)
    before = {path.name: sha256(path) for path in tmp_path.iterdir()}
    for arguments, reason in (
        ((source, tmp_path / 'foreign.pth'), 'exists and is kept'),
        ((source, source), 'is the input and is kept'),
        ((source, tmp_path / 'link.pth'), 'is the input and is kept'),
        ((source, tmp_path / 'x.onnx'), 'one of .pth, .safetensors, .bin was expected'),
        ((stock, tmp_path / 'x.pth', '--to', 'huggingface'), 'ReLU cannot be folded away'),
        ((tmp_path / 'part.pth', tmp_path / 'x.pth'), 'layers.0.0.projection.bias, '),
        ((tmp_path / 'none.pth', tmp_path / 'x.pth'), 'is not a file'),
        ((tmp_path, tmp_path / 'x.pth'), 'is a folder without model.safetensors'),
    ):
        assert tool('convert_weights', *arguments) == 2
        assert reason in single_error(capsys)
    assert {path.name: sha256(path) for path in tmp_path.iterdir()} == before
    lines = convert_weights(stock, tmp_path / 'encoder.pth', 'authors', encoder_only=True)
    assert lines[1].endswith("names of SegFormer's authors, encoder alone")


@pytest.mark.parametrize(
    'name', ['a.pth', 'a.bin', 'a.safetensors', 'h.pth', 'h.bin', 'h.safetensors', 'm.safetensors']
)
def test_a_training_starts_from_any_file(model, source, tmp_path, name):
    layout = dict(a='authors', h='huggingface', m='mmseg')[name[0]]
    convert_weights(source, tmp_path / name, layout)
    cfg = tiny_config()
    cfg.work_dir = str(tmp_path / 'work')
    set_encoder_weights(cfg, str(tmp_path / name))
    inherit_records(cfg)
    init_default_scope('mmseg')
    built = MODELS.build(cfg.model)
    with safe_checkpoints():
        built.init_weights()
    assert same(built.backbone.state_dict(), model.backbone.state_dict())
    if not name.endswith('.bin'):
        assert cfg.inherited_record == TrainingRecord(['1', '2'], ['3']).as_meta()


def test_a_training_starts_from_a_folder_of_transformers(tmp_path):
    import_or_skip('transformers', 'dev')
    theirs('SegformerForImageClassification').save_pretrained(tmp_path / 'mit')
    cfg = tiny_config()
    cfg.work_dir = str(tmp_path / 'work')
    set_encoder_weights(cfg, str(tmp_path / 'mit'))
    found = open_checkpoint(cfg.model.backbone.init_cfg.checkpoint)['state_dict']
    assert len(found) == len(tiny_segformer().backbone.state_dict())
    (tmp_path / 'mit' / 'model.safetensors').rename(tmp_path / 'mit' / 'model-00001-of-00002.safetensors')
    (tmp_path / 'mit' / 'model.safetensors.index.json').write_text('{}')
    with pytest.raises(IgniteError, match='several files'):
        set_encoder_weights(cfg, str(tmp_path / 'mit'))


def test_a_plain_model_trains_and_its_converted_file_is_tested_like_a_checkpoint(prepared, tmp_path):
    """Also after a detour through Hugging Face's names; the patients of its training are still refused."""
    tiny = {f'model.backbone.{key}': value for key, value in dict(embed_dims=8, num_layers=(1, 1, 1, 1)).items()}
    head = {'model.decode_head.in_channels': WIDTHS, 'model.decode_head.channels': 16, 'model.decode_head.plain': True}
    cfg = small_config(prepared, tmp_path / 'work', **tiny, **head)
    train(copy.deepcopy(cfg), weights='none')
    trained = tmp_path / 'work' / 'iter_2.pth'
    convert_weights(trained, tmp_path / 'h.safetensors', 'huggingface')
    convert_weights(tmp_path / 'h.safetensors', tmp_path / 'm.safetensors')
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    labels = [Predictor(cfg, path, 'cpu').predict(image) for path in (trained, tmp_path / 'm.safetensors')]
    assert (labels[0] == labels[1]).all()
    cfg.test_dataloader.dataset.split = 'train'
    with pytest.raises(IgniteError, match=r'm\.safetensors was trained or validated on'):
        score(cfg, tmp_path / 'm.safetensors', tmp_path / 'scores', report=None)


@pytest.mark.parametrize('name', ['x.bin', 'x.pth', 'x.safetensors'])
def test_a_full_disk_leaves_nothing(source, tmp_path, name):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(IgniteError, match='cannot be written .*: choose another folder'):
            convert_weights(source, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in tmp_path.iterdir()] == ['ours.safetensors']


@pytest.mark.parametrize('kind', [torch.bool, torch.int64, torch.complex64])
def test_initial_weights_of_another_kind_of_numbers_are_refused(tmp_path, kind):
    weights = {name: value.to(kind) for name, value in tiny_segformer().state_dict().items()}
    torch.save(weights, tmp_path / 'x.pth')
    cfg = tiny_config()
    cfg.work_dir = str(tmp_path)
    with pytest.raises(IgniteError, match='another shape or type'):
        set_encoder_weights(cfg, str(tmp_path / 'x.pth'))
