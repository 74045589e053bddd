"""The reader of checkpoints returns what torch's own reader does, bit by bit, for whatever ``torch.save`` writes."""

import random
import warnings
from collections import Counter, OrderedDict

import pytest
import torch

from mmseg_ignite.engine.checkpoints.contents import checked, checksum
from mmseg_ignite.engine.checkpoints.file_formats import read_checkpoint
from mmseg_ignite.engine.checkpoints.mmengine_objects import ForeignContent

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip
ZIP_ONLY = [torch.uint16, torch.uint32, torch.float8_e4m3fn]
"""Numbers that torch itself cannot read in the format before torch 1.6."""


def random_tensor(rng):
    """A tensor of any type: 0-dim, empty, transposed, strided, or a part of a larger one."""
    dtype, size = rng.choice(DTYPES), [rng.randrange(5) for _ in range(rng.randrange(4))]
    seed = torch.Generator().manual_seed(rng.randrange(1 << 30))
    if dtype == torch.bool:
        tensor = torch.randint(0, 2, size, generator=seed).bool()
    else:
        count = torch.Size(size).numel() * dtype.itemsize
        tensor = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=seed).view(dtype).reshape(size)
    shape = rng.randrange(4)
    if shape == 1:
        tensor = tensor.permute(tuple(range(tensor.ndim))[::-1])
    elif shape == 2 and tensor.ndim and len(tensor):
        tensor = tensor[:: rng.randrange(1, 3)][rng.randrange(2) :]
    elif shape == 3 and dtype.is_floating_point and dtype.itemsize > 1:
        tensor = torch.nn.Parameter(tensor, requires_grad=rng.random() < 0.5)
    return tensor


def random_value(rng, depth=0):
    kinds = [
        lambda: random_tensor(rng), lambda: random_tensor(rng),
        lambda: rng.choice(['', 'a', 'é', '漢字 \U0001f600', 'x' * 300, '\ud800', rng.random(), -0.0, 1e308, float('inf')]),
        lambda: rng.choice([0, -1, 255, 256, 65536, -(1 << 31), 1 << 31, 1 << 63, -(10**300), None, True, False, 2.5j]),
        lambda: rng.choice([b'', b'abc', bytes(range(256)), bytes(range(128, 256)) * 5]),
        lambda: rng.choice([torch.float32, torch.Size([2, 3]), torch.device('cpu'), torch.device('cuda', 1), {1, 'a', 2.5}]),
        lambda: rng.choice([Counter({3: 2, 8: 1}), Counter()]),
    ]  # fmt: skip
    if depth < 4:
        kinds += 2 * [
            lambda: {random_key(rng): random_value(rng, depth + 1) for _ in range(rng.randrange(5))},
            lambda: OrderedDict((random_key(rng), random_value(rng, depth + 1)) for _ in range(rng.randrange(5))),
            lambda: [random_value(rng, depth + 1) for _ in range(rng.randrange(5))],
            lambda: tuple(random_value(rng, depth + 1) for _ in range(rng.randrange(5))),
            lambda: [random_value(rng, depth + 1)] * rng.randrange(3),
        ]
    return rng.choice(kinds)()


def random_key(rng):
    return rng.choice([rng.randrange(-9, 1 << 40), f'name.{rng.randrange(100)}', rng.random(), None, True])


def random_content(seed, zipped):
    rng = random.Random(seed)
    content = OrderedDict((f'part{i}', random_value(rng)) for i in range(8))
    content._metadata = OrderedDict(version=1)
    base = torch.arange(24.0)
    new = [torch.arange(5, dtype=torch.uint8).to(kind)[1:] for kind in ZIP_ONLY if zipped]
    return {
        'new': new,
        'content': content,
        'views': [base, base[3:7], base.view(4, 6).t(), base[1:1]],
        'many': list(range(2500)),
    }


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert type(one) is torch.Tensor and not one.requires_grad and one.device.type == 'cpu'
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        bits = [
            value.detach().contiguous().as_strided((one.numel(),), (1,)).view(torch.uint8) for value in (one, other)
        ]
        assert torch.equal(*bits)
    elif isinstance(one, dict):
        assert type(one) is dict and isinstance(other, dict) and list(one) == list(other)
        assert list(map(type, one)) == list(map(type, other))
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert type(one) is type(other) and len(one) == len(other)
        for pair in zip(one, other):
            assert_same(*pair)
    else:
        assert type(one) is type(other) and (one == other) and repr(one) == repr(other)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('zipped', [True, False])
def test_random_content_is_read_as_torch_reads_it(tmp_path, zipped, protocol):
    """torch's restricted reader knows protocol 2 only; the others are read by pickle."""
    for seed in range(40):
        path = tmp_path / f'{seed}.pth'
        torch.save(random_content(seed, zipped), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        with torch.serialization.safe_globals([bytes]):  # for bytes of length 0
            expected = torch.load(path, weights_only=protocol == 2, map_location='cpu')
        found = read_checkpoint(path)
        assert_same(found, expected)
        assert_same(checked(found, path), expected)
        views = found['views']
        assert len({view.untyped_storage().data_ptr() for view in views}) == 1
        assert found['content'].keys() == random_content(seed, zipped)['content'].keys()


@pytest.mark.parametrize('zipped', [True, False])
def test_a_whole_module_is_refused(tmp_path, zipped):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.save(dict(model=torch.nn.Linear(1, 1)), tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(ForeignContent):
        read_checkpoint(tmp_path / 'x.pth')


def test_a_conjugated_view_is_refused(tmp_path):
    """Its bytes are not its values."""
    torch.save(torch.ones(2, dtype=torch.complex64).conj(), tmp_path / 'x.pth')
    with pytest.raises(ForeignContent, match='tensor of another kind'):
        read_checkpoint(tmp_path / 'x.pth')


def test_a_single_value_of_a_strided_tensor_has_a_checksum():
    one = torch.arange(4.0)[::2][1:]
    assert one.stride() == (2,) and checksum(dict(a=one)) == checksum(dict(a=torch.tensor([2.0])))
