"""Hostile and damaged checkpoints: no code runs, nothing outside is touched, memory is limited, and one sentence ends it."""

import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_payloads import Hostile, archive, build, call, code, entries, in_child, name, outcomes, tensor
from conftest import DEMO_CONFIG, tool

from mmseg_ignite.apis import load_config
from mmseg_ignite.engine import load_weights, open_checkpoint

pytestmark = pytest.mark.usefixtures('one_thread')
GOOD = dict(state_dict=dict(a=tensor()))
MAX_GROWTH = 300  # MB


def opened(path):
    """Open a checkpoint and let it go again, where a forged object would crash."""
    return type(open_checkpoint(path)).__name__


def check_refused(outcome, path, growth=MAX_GROWTH):
    assert outcome.kind == 'refused', outcome
    assert Path(path).name in outcome.text and '\n' not in outcome.text and len(outcome.text) < 1000
    assert outcome.grown < growth and outcome.seconds < 15, outcome


def check_all_refused(paths, growth=MAX_GROWTH):
    """Open files one after the other in one process; each must be refused."""
    for path, outcome in zip(paths, outcomes([(opened, path) for path in paths]), strict=True):
        check_refused(outcome, path, growth)


# Code


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('place', ['top', 'state_dict', 'meta', 'message_hub', 'optimizer', 'itself'])
def test_code_in_any_part_is_not_run(tmp_path, place, zipped):
    """In torch's zip format and in the one before it."""
    bad, content = (
        Hostile(tmp_path / 'ran'),
        dict(state_dict=dict(a=torch.ones(1)), meta={}, message_hub={}, optimizer={}),
    )
    if place == 'itself':
        content = bad
    else:
        (content if place == 'top' else content[place])['x'] = bad
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    check_refused(in_child(opened, tmp_path / 'x.pth'), 'x.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('member', ['pickle', 'storages', 'tensors'])
def test_code_in_the_tar_format_is_not_run(tmp_path, member):
    for part in ('pickle', 'storages', 'tensors'):
        content = pickle.dumps(Hostile(tmp_path / 'ran') if part == member else 0, protocol=2)
        (tmp_path / part).write_bytes(content * 3)
    with tarfile.open(tmp_path / 'x.pth', 'w', format=tarfile.PAX_FORMAT) as file:
        for part in ('sys_info', 'pickle', 'storages', 'tensors'):
            (tmp_path / part).touch()
            file.add(tmp_path / part, part)
    check_refused(in_child(opened, tmp_path / 'x.pth'), 'x.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('protocol', range(6))
def test_a_bare_pickle_is_not_run(tmp_path, protocol):
    (tmp_path / 'x.pth').write_bytes(pickle.dumps(Hostile(tmp_path / 'ran'), protocol=protocol))
    check_refused(in_child(opened, tmp_path / 'x.pth'), 'x.pth')
    assert not (tmp_path / 'ran').exists()


def test_a_torchscript_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as file:
        for member in ('data.pkl', 'constants.pkl'):
            file.writestr(f'archive/{member}', pickle.dumps(Hostile(tmp_path / 'ran'), protocol=2))
        file.writestr('archive/code/__torch__.py', 'class M(Module):\n  def forward(self):\n    return 1\n')
        file.writestr('archive/version', '3\n')
    check_refused(in_child(opened, tmp_path / 'x.pth'), 'x.pth')
    assert not (tmp_path / 'ran').exists()


def test_a_second_pickle_in_the_archive_is_not_run(tmp_path):
    """Readers of zip archives may choose either of two entries with one name."""
    archive(tmp_path / 'x.pth', GOOD)
    with pytest.warns(UserWarning, match='Duplicate name'), zipfile.ZipFile(tmp_path / 'x.pth', 'a') as file:
        file.writestr('archive/data.pkl', pickle.dumps(Hostile(tmp_path / 'ran'), protocol=2))
    check_refused(in_child(opened, tmp_path / 'x.pth'), 'x.pth')
    assert not (tmp_path / 'ran').exists()


CODE = [
    call('posix.system', 'touch ran'),
    call('os.system', 'touch ran'),
    call('builtins.eval', "open('ran', 'w')"),
    call('builtins.getattr', name('mmengine.logging.history_buffer.HistoryBuffer'), '__init__'),
    call('torch.load', 'other.pth'),
    call('torch.hub.load', 'a/b', 'c'),
    call('functools.partial', name('os.system'), 'touch ran'),
    call('torch._tensor._rebuild_from_type_v2', name('os.system'), name('torch.Tensor'), ('touch ran',), None),
    call('numpy.load', 'x.npy', None, True),
    name('mmengine.config.Config.fromstring'),
]


def test_functions_are_not_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [archive(tmp_path / f'{i}.pth', {**GOOD, 'x': payload}) for i, payload in enumerate(CODE)]
    check_all_refused(paths)
    assert sorted(tmp_path.iterdir()) == sorted(paths)


# Objects that are allowed one by one


def dtype(kind='f8', fields=None, order='|', flags=0, copy=True):
    names = tuple(fields) if fields else None
    state = (3, order, None, names, fields, 8 if fields else -1, 1 if fields else -1, flags)
    return build(call('numpy.dtype', kind, False, copy), state)


def raw(text):
    return call('_codecs.encode', text, 'latin1')


def array(kind, shape, content):
    empty = call('numpy._core.multiarray._reconstruct', name('numpy.ndarray'), (0,), raw('b'))
    return build(empty, (1, shape, kind, False, raw(content)))


OBJECT = call('numpy.dtype', 'O8', False, True)
FIELD = {'a': (OBJECT, 0)}
POINTER = 'ABCDEFGH'
NESTED = b']' * 50_000 + b'a' * 49_999
BOMB = raw('x' * 255)
for _ in range(24):  # 2 to the power of 24 times as long
    BOMB = name('_codecs.encode') + code((BOMB, 'hex')) + b'R'
HISTORY = name('mmengine.logging.history_buffer.HistoryBuffer') + b')\x81'
STRIDED, CPU = call('torch.serialization._get_layout', 'torch.strided'), call('torch.device', 'cpu')
WRAPPED = (name('torch.Tensor'), name('torch.float32'), (1 << 40,), (1,), 0, STRIDED, CPU, False)
ALLOWED = {
    'object array': array(OBJECT, (1,), POINTER),
    'object field': array(dtype(fields=FIELD), (1,), POINTER),
    'object field of integers': array(dtype('i8', FIELD), (1,), POINTER),
    'object scalar': call('numpy._core.multiarray.scalar', dtype(fields=FIELD), raw(POINTER)),
    'field outside': array(dtype(fields={'a': (call('numpy.dtype', 'f8', False, True), 1 << 30)}), (1,), POINTER),
    'flags': array(dtype(flags=63), (1,), POINTER),
    "numpy's own float64": dtype(order='>', copy=False),
    'array of 2^40 bytes': call('numpy.ndarray', (1 << 40,), 'u1'),
    'array of 2^30 bytes': call('numpy.ndarray', (1 << 30,), 'u1'),
    'array by strides': call('numpy.ndarray', (10**12,), 'u1', raw('A'), 0, (0,)),
    'array of text': array(dtype(), (1,), POINTER * 2),
    'bytearray': call('builtins.bytearray', 1 << 30),
    'bytes by a codec': BOMB,
    'wrapper': call('torch._utils._rebuild_wrapper_subclass', *WRAPPED),
    'tensor of 2^28 values': call('torch.FloatTensor', 1 << 28),
    'storage of 2^30 bytes': call('torch.storage.UntypedStorage', 1 << 30),
    'deep list': NESTED,
    'deep dictionary': b'}' + b'X\x01\x00\x00\x00k}' * 50_000 + b's' * 50_000,
    'deep tuple': b')' + b'\x85' * 1_000_000,
    'deep key': b'})' + b'\x85' * 1_000_000 + b'Ns',
    'list in itself': b']q\x01h\x01a',
    'dictionary in itself': b'}q\x01X\x01\x00\x00\x00kh\x01s',
    'text that is cut': b'X\xff\xff\xff\x7fabc',
    'unknown opcode': b'\xff',
    'empty stack': b'R',
    'history of text': build(HISTORY, {'_log_history': 'abc'}),
}  # fmt: skip


@pytest.mark.parametrize('place', ['meta', 'state_dict'])
def test_forged_objects_are_refused(tmp_path, place):
    paths = [
        archive(tmp_path / f'{what}.pth', {**GOOD, place: {**GOOD.get(place, {}), 'x': payload}})
        for what, payload in ALLOWED.items()
    ]
    check_all_refused(paths)


# Tensors


BIG = 10**12
TENSORS = {
    'expanded': tensor((BIG,), (0,)),
    'expanded twice': tensor((1 << 20, 1 << 20), (0, 0)),
    'beyond its storage': tensor((10,), (1,)),
    'far beyond its storage': tensor((1 << 31,), (1,)),
    'stride beyond its storage': tensor((2,), (1 << 40,)),
    'size 2^62': tensor((1 << 62,), (1,)),
    'size 2^64': tensor((1 << 64,), (1,)),
    'size overflows': tensor((1 << 32, 1 << 32, 4), (0, 0, 0)),
    'negative size': tensor((-1,), (1,)),
    'negative stride': tensor((2,), (-1,), offset=1, numel=2),
    'negative offset': tensor((1,), (1,), offset=-1),
    'offset beyond its storage': tensor((1,), (1,), offset=1 << 40),
    'size is text': tensor('ab', (1,)),
    'other number of strides': tensor((1,), (1, 1)),
    'storage is longer than its record': tensor((1000,), (1,), numel=1000),
    'storage of 2^61 values': tensor((1,), (1,), numel=1 << 61),
    'storage of negative length': tensor((1,), (1,), numel=-1),
    'storage of no length': tensor((1,), (1,), numel=0),
    'storage without a record': tensor(key='9'),
    'storage outside': tensor(key='../../../../etc/passwd'),
    'storage of quantized values': tensor(kind='QInt32Storage'),
}  # fmt: skip


@pytest.mark.parametrize('place', ['state_dict', 'optimizer'])
def test_forged_tensors_are_refused(tmp_path, place):
    paths = [
        archive(tmp_path / f'{what}.pth', {**GOOD, place: {**GOOD.get(place, {}), 'x': payload}})
        for what, payload in TENSORS.items()
    ]
    check_all_refused(paths)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ['sparse', 'csr', 'outside', 'quantized', 'nested', 'meta'])
def test_tensors_that_no_training_writes_are_refused(tmp_path, kind):
    values = {
        'sparse': lambda: torch.eye(3).to_sparse(),
        'csr': lambda: torch.eye(3).to_sparse_csr(),
        'outside': lambda: torch.sparse_coo_tensor([[7]], [1.0], (2,), check_invariants=False),
        'quantized': lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        'nested': lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        'meta': lambda: torch.empty(1 << 40, device='meta'),
    }
    torch.save(dict(state_dict=dict(a=torch.ones(1), x=values[kind]())), tmp_path / 'x.pth')
    check_refused(in_child(opened, tmp_path / 'x.pth'), 'x.pth')


# Content


CONTENTS = {
    'list': [tensor()],
    'tensor': tensor(),
    'text': 'state_dict',
    'state_dict is a list': dict(state_dict=[tensor()]),
    'state_dict is None': dict(state_dict=None),
    'state_dict is a number': dict(state_dict=1),
    'state_dict is a tensor': dict(state_dict=tensor()),
    'state_dict has numbers': dict(state_dict=dict(a=1)),
    'state_dict has lists': dict(state_dict=dict(a=[tensor()])),
    'state_dict has None': dict(state_dict=dict(a=None)),
    'state_dict has state_dicts': dict(state_dict=dict(a=dict(b=tensor()))),
    'number as key': dict(state_dict={1: tensor()}),
    'None as key': dict(state_dict={None: tensor()}),
    'bytes as key': dict(state_dict={raw('a'): tensor()}),
    'tuple as key': dict(state_dict={('a', 'b'): tensor()}),
    'number as name of a part': {**GOOD, 1: 2},
    'meta is a list': {**GOOD, 'meta': [1]},
    'meta is text': {**GOOD, 'meta': 'abc'},
    'meta is a tensor': {**GOOD, 'meta': tensor()},
}  # fmt: skip


def test_other_content_is_refused(tmp_path):
    paths = [archive(tmp_path / f'{what}.pth', content) for what, content in CONTENTS.items()]
    check_all_refused(paths)
    loaded = outcomes([(load_weights, torch.nn.Linear(1, 1), path) for path in paths])
    for path, outcome in zip(paths, loaded, strict=True):
        check_refused(outcome, path)


def test_weights_whose_methods_are_replaced_are_harmless(tmp_path):
    """Attributes of a dictionary in a file may have the names of its methods."""
    forged = call('collections.OrderedDict') + code({'a': tensor()})[1:]
    forged = build(forged, dict.fromkeys(('items', 'keys', 'values', 'get', 'copy', '_metadata'), 1))
    path = archive(tmp_path / 'x.pth', dict(state_dict=forged))
    check_refused(in_child(load_weights, torch.nn.Linear(1, 1), path), path)


def test_the_builder_of_these_files_can_write_good_ones(tmp_path):
    for content in (GOOD, {**GOOD, 'meta': {'iter': 1, 'cfg': 'a = 1'}}, dict(a=tensor((2, 2), (2, 1), numel=4))):
        archive(tmp_path / 'x.pth', content, {'0': bytes(16 if 'a' in content else 4)})
        assert in_child(opened, tmp_path / 'x.pth').kind == 'returned'


# Files


def test_a_compressed_checkpoint_is_not_inflated(tmp_path, monkeypatch):
    """200 kB that become 200 MB; torch never compresses."""
    monkeypatch.setenv('MMSEG_IGNITE_MAX_GB', '0.05')
    numel = 50_000_000
    content = dict(state_dict=dict(a=tensor((numel,), (1,), numel=numel)))
    path = archive(tmp_path / 'x.pth', content, {'0': bytes(4 * numel)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    check_refused(in_child(opened, path), path, growth=100)


def test_a_small_compressed_checkpoint_is_refused(tmp_path):
    path = archive(tmp_path / 'x.pth', GOOD, compression=zipfile.ZIP_DEFLATED)
    check_refused(in_child(opened, path), path)


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """A file of 4 MB whose 500 tensors of 4 MB are all the same bytes."""
    numel = 1_000_000
    weights = {f'w{i}': tensor((numel,), (1,), key=f'{i:03d}', numel=numel) for i in range(500)}
    path = archive(tmp_path / 'x.pth', dict(state_dict=weights), {'000': bytes(4 * numel)})

    def repeat(found):
        shared = next(entry for entry in found if entry[1] == b'archive/data/000')
        return found + [(shared[0], b'archive/data/%03d' % i) for i in range(1, 500)]

    entries(path, repeat)
    check_refused(in_child(opened, path), path)


@pytest.mark.parametrize('where, size', [(20, 1 << 31), (24, 1 << 31), (24, 1), (42, 1 << 30), (10, 99)])
def test_entries_that_lie_are_refused(tmp_path, where, size):
    """About their compressed size, size, position, or method of compression."""
    path = archive(tmp_path / 'x.pth', GOOD)

    def lie(found):
        form = '<H' if where == 10 else '<I'
        width = struct.calcsize(form)
        return [
            (h[:where] + struct.pack(form, size) + h[where + width :] if n == b'archive/data/0' else h, n)
            for h, n in found
        ]

    entries(path, lie)
    check_refused(in_child(opened, path), path)


@pytest.mark.parametrize('kind', ['pipe', 'folder', 'device', 'loop', 'missing', 'null byte', 'empty', 'long name'])
def test_paths_that_are_no_files_are_refused(tmp_path, kind):
    path = tmp_path / 'x.pth'
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    elif kind == 'loop':
        path.symlink_to(path)
    elif kind == 'empty':
        path.touch()
    elif kind == 'null byte':
        path = tmp_path / 'x\0.pth'
    elif kind == 'long name':
        path = tmp_path / ('x' * 5000)
    outcome = in_child(opened, path)
    assert outcome.kind == 'refused' and outcome.grown < MAX_GROWTH and outcome.seconds < 5, outcome


def test_legacy_storages_that_lie_are_refused(tmp_path):
    """The format before torch 1.6 states the length of each storage in the pickle and again before its bytes."""
    torch.save(dict(state_dict=dict(a=torch.ones(7))), tmp_path / 'x.pth', _use_new_zipfile_serialization=False)
    good = (tmp_path / 'x.pth').read_bytes()
    numel = struct.pack('<q', 7)
    assert good.count(numel) == 1 and good.count(b'K\x07') >= 1
    lies = [good.replace(numel, struct.pack('<q', length)) for length in (8, 1 << 20, 1 << 40, 1 << 62, -1)]
    pickled = (b'\x8a\x05\x00\x00\x00\x00\x10', b'J\xff\xff\xff\xff', b'J\xff\xff\xff\x7f')
    lies += [good.replace(b'K\x07', length) for length in pickled]
    paths = [tmp_path / f'{number}.pth' for number in range(len(lies))]
    for path, content in zip(paths, lies):
        path.write_bytes(content)
    check_all_refused(paths)


@pytest.mark.parametrize('name_', ['train', 'test', 'predict'])
def test_the_tools_print_one_sentence(prepared, tmp_path, capsys, name_):
    content = {**GOOD, 'meta': {'x': ALLOWED['object field']}}
    (tmp_path / 'w').mkdir()
    path = archive(tmp_path / 'w' / 'iter_2.pth', content)
    config_ = tmp_path / 'config.py'
    load = load_config(DEMO_CONFIG, dict(data_root=str(prepared)))
    load.dump(config_)
    arguments = {
        'train': [config_, '--work-dir', tmp_path / 'w', '--resume'],
        'test': [config_, path, '--work-dir', tmp_path / 't'],
        'predict': [config_, path, prepared / 'images', '--out', tmp_path / 'p'],
    }
    outcome = in_child(tool, name_, *arguments[name_], seconds=60)
    assert outcome[:2] == ('returned', '2'), outcome
