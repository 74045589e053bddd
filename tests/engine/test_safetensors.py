"""Checkpoints in the format safetensors: opened wherever a checkpoint stands, damaged and hostile files in one sentence."""

import json
import struct

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_segformer import tiny_config, tiny_segformer

from mmseg_ignite.engine import load_weights, open_checkpoint, safe_checkpoints
from mmseg_ignite.engine.checkpoints import DamagedCheckpoint, write_safetensors
from mmseg_ignite.engine.ensembles import Ensemble, write_ensemble
from mmseg_ignite.engine.training_record import TrainingRecord
from mmseg_ignite.errors import IgniteError

RECORD = TrainingRecord(['1', '2'], ['3'], um_per_px=0.5)
META = dict(iter=7, loss=0.1, classes=('a', 'Ж'), nothing=None, **RECORD.as_meta())


@pytest.fixture(scope='module')
def model():
    return tiny_segformer(plain=False)


@pytest.fixture
def path(model, tmp_path):
    """A checkpoint of a small model."""
    write_safetensors(tmp_path / 'm.safetensors', model.state_dict(), META)
    return tmp_path / 'm.safetensors'


def raw(path, header, data=b''):
    """Write a file with any header."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header + data)
    return path


def test_weights_and_meta_are_read_back(model, path):
    content = open_checkpoint(path)
    assert content['meta'] == {
        **META,
        'classes': ['a', 'Ж'],
        'mmseg_ignite': json.loads(json.dumps(META['mmseg_ignite'])),
    }
    assert TrainingRecord.of_meta(content['meta']) == RECORD
    assert content['state_dict'].keys() == model.state_dict().keys()
    assert all(torch.equal(content['state_dict'][name], value) for name, value in model.state_dict().items())
    with safe_open(path, 'pt') as file:
        assert file.metadata()['format'] == 'pt'  # transformers refuses files without


def test_equal_content_gives_equal_bytes(path, tmp_path):
    content = open_checkpoint(path)
    for _ in range(8):  # the library orders texts at random
        write_safetensors(tmp_path / 'again.safetensors', content['state_dict'], META)
        assert (tmp_path / 'again.safetensors').read_bytes() == path.read_bytes()


def test_it_stands_wherever_a_checkpoint_does(model, path, tmp_path):
    init_default_scope('mmseg')
    other = tiny_segformer(plain=False)
    for load in (lambda: load_weights(other, path), lambda: load_checkpoint(other, str(path))):
        torch.nn.init.zeros_(other.decode_head.conv_seg.weight)
        with safe_checkpoints():
            load()
        assert torch.equal(other.decode_head.conv_seg.weight, model.decode_head.conv_seg.weight)
    assert Ensemble.read(path).metas()[0]['iter'] == 7
    write_safetensors(tmp_path / 'n.safetensors', other.state_dict())
    write_ensemble(tmp_path / 'ensemble.json', [path, tmp_path / 'n.safetensors'])
    ensemble = Ensemble.read(tmp_path / 'ensemble.json')
    ensemble.check_members(tiny_config(plain=False).model)
    assert [meta and meta['iter'] for meta in ensemble.metas()] == [7, None]


def test_files_of_others_and_without_suffix_are_read(model, path, tmp_path):
    save_file({'a': torch.ones(2, 3), 'n': torch.tensor(3)}, tmp_path / 'bare.safetensors')
    assert open_checkpoint(tmp_path / 'bare.safetensors').keys() == {'state_dict'}
    renamed = path.rename(tmp_path / 'm.pth')
    assert open_checkpoint(renamed)['meta']['iter'] == 7


def test_shared_and_strided_tensors_and_odd_types(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    weights = dict(a=base, b=base, c=base[1:], d=base.t(), e=base.bfloat16(), f=torch.tensor(True), g=torch.ones(0, 3))
    write_safetensors(tmp_path / 'x.safetensors', weights)
    found = open_checkpoint(tmp_path / 'x.safetensors')['state_dict']
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in weights.items())
    before = (tmp_path / 'x.safetensors').read_bytes()
    for wrong in (
        dict(state_dict=dict(a=torch.ones(2, dtype=torch.complex64))),
        dict(state_dict={}, meta=dict(a=object())),
    ):
        with pytest.raises(IgniteError, match='cannot hold'):
            write_safetensors(tmp_path / 'x.safetensors', **wrong)
    (tmp_path / 'file').touch()
    with pytest.raises(IgniteError, match='cannot be written'):
        write_safetensors(tmp_path / 'file' / 'x.safetensors', weights)
    assert (tmp_path / 'x.safetensors').read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ['file', 'x.safetensors']


def test_reading_does_not_depend_on_the_file_afterwards(path):
    content = open_checkpoint(path)
    name = 'decode_head.conv_seg.weight'
    before = content['state_dict'][name].clone()
    with open(path, 'r+b') as stream:
        stream.truncate(0)
    assert torch.equal(content['state_dict'][name], before)


def test_each_damage_is_one_sentence(path):
    whole = path.read_bytes()
    for size in (0, 5, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedCheckpoint, match=r'm\.safetensors cannot be read as a checkpoint'):
            open_checkpoint(path)
    path.write_bytes(whole + b'x')
    with pytest.raises(DamagedCheckpoint):
        open_checkpoint(path)
    start = struct.unpack('<Q', whole[:8])[0] + 8
    for place in (start + 4000, whole.index(b'iter') + 8, whole.index(b'sha256') + 20):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(DamagedCheckpoint, match='checksum'):
            open_checkpoint(path)


F32 = dict(dtype='F32', shape=[2], data_offsets=[0, 8])


@pytest.mark.parametrize(
    ('header', 'data'),
    [
        (b'{' * 5000, b''),
        (b'[1]', b''),
        ({'a': dict(F32, shape=[1 << 40], data_offsets=[0, 1 << 42])}, bytes(8)),
        ({'a': dict(F32, shape=[1 << 62, 1 << 62])}, bytes(8)),
        ({'a': dict(F32, data_offsets=[4, 12])}, bytes(12)),
        ({'a': dict(F32, data_offsets=[8, 0])}, bytes(8)),
        ({'a': F32, 'b': F32}, bytes(8)),
        ({'a': dict(F32, dtype='F8_E4M3', shape=[8])}, bytes(8)),
        ({'a': dict(F32, dtype='OBJ')}, bytes(8)),
        ({'a': dict(F32, shape=[1] * 70, data_offsets=[0, 4])}, bytes(4)),
        ({'a': dict(F32, shape=[0, 1 << 62, 1 << 62], data_offsets=[0, 0])}, b''),
        ({'a': dict(F32, dtype='BOOL', shape=[8])}, b'\x02' * 8),
        ({'__metadata__': {'mmseg_ignite.meta': '[' * 100_000}, 'a': F32}, bytes(8)),
        ({'__metadata__': {'mmseg_ignite.meta': '[1]'}, 'a': F32}, bytes(8)),
        ({'__metadata__': {'mmseg_ignite.meta': 5}, 'a': F32}, bytes(8)),
        ({'__metadata__': {'mmseg_ignite.checksum': 'sha256:0'}, 'a': F32}, bytes(8)),
    ],
)
def test_hostile_headers(tmp_path, header, data):
    with pytest.raises(DamagedCheckpoint, match=r'h\.safetensors') as found:
        open_checkpoint(raw(tmp_path / 'h.safetensors', header, data))
    assert '\n' not in str(found.value) and len(str(found.value)) < 400


def test_headers_larger_than_the_file_or_the_limit(tmp_path):
    for length in (1 << 63, 1 << 40, 1 << 25, 17):
        (tmp_path / 'h.safetensors').write_bytes(struct.pack('<Q', length) + b'{}' * 8)
        with pytest.raises(DamagedCheckpoint, match='header'):
            open_checkpoint(tmp_path / 'h.safetensors')
    large = {f'{n:0>60000}': dict(dtype='F32', shape=[0], data_offsets=[0, 0]) for n in range(300)}
    with pytest.raises(DamagedCheckpoint, match='16 MiB'):
        open_checkpoint(raw(tmp_path / 'h.safetensors', large))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    save_file({'w': torch.tensor([1.0, float('nan')])}, tmp_path / 'x.safetensors')
    with pytest.raises(IgniteError, match='NaN or infinite'):
        open_checkpoint(tmp_path / 'x.safetensors')


def test_names_of_others_are_explained(tmp_path, model):
    save_file({'patch_embed1.proj.weight': torch.ones(8, 3, 7, 7)}, tmp_path / 'x.safetensors')
    with pytest.raises(IgniteError, match="names of SegFormer's authors: convert it with tools/convert_weights.py"):
        load_weights(model, tmp_path / 'x.safetensors')


def test_names_of_weights_are_shown_in_one_short_line(tmp_path, model):
    evil = 'a\n\x1b[31m' + 'y' * 5000
    for value, reason in ((torch.ones(2), 'another model'), (torch.tensor(float('nan')), 'NaN')):
        save_file({evil: value}, tmp_path / 'x.safetensors')
        with pytest.raises(IgniteError, match=reason) as found:
            load_weights(model, tmp_path / 'x.safetensors')
        assert str(found.value).isprintable() and len(str(found.value)) < 500


def test_a_weight_that_is_there_twice_is_refused(tmp_path, model):
    weights = model.state_dict()
    first = next(iter(weights))
    torch.save({**weights, f'module.{first}': weights[first] + 1}, tmp_path / 'x.pth')
    with pytest.raises(IgniteError, match='twice'):
        load_weights(model, tmp_path / 'x.pth')


def test_a_file_of_torch_with_the_suffix_and_a_name_that_is_not_utf8(tmp_path, path):
    torch.save(dict(state_dict=dict(w=torch.ones(2))), tmp_path / 't.safetensors')
    assert open_checkpoint(tmp_path / 't.safetensors')['state_dict'].keys() == {'w'}
    renamed = path.rename(tmp_path / '\udcff.safetensors')
    assert open_checkpoint(renamed)['meta']['iter'] == 7
