"""TissueEnsemble compared with its members, and the JSON files that list them."""

import copy
import json

import numpy as np
import pytest
import torch
from mmseg.registry import MODELS
from test_tissue_segmentor import CLASSES, SLIDE, build, config, samples

from mmseg_ignite.engine.ensembles import Ensemble, write_ensemble
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.inference import average_symmetries
from mmseg_ignite.models.segmentors import TissueEnsemble
from mmseg_ignite.models.segmentors.window_scores import preprocessed

pytestmark = pytest.mark.usefixtures('one_thread')

SIZE = (96, 112)


@pytest.fixture(scope='module')
def members_on_cpu():
    return [build('TissueSegmentor', dict(mode='whole')) for _ in range(3)]


@pytest.fixture
def members(members_on_cpu, device):
    return [copy.deepcopy(member).to(device) for member in members_on_cpu]


@pytest.fixture(scope='module')
def folder(members_on_cpu, tmp_path_factory):
    """Write checkpoints of folds, an ensemble of all and an ensemble of one."""
    folder = tmp_path_factory.mktemp('ensemble')
    for number, member in enumerate(members_on_cpu):
        (folder / f'fold{number}').mkdir()
        torch.save(
            dict(state_dict=member.state_dict(), meta=dict(iter=number)), folder / f'fold{number}' / 'iter_2.pth'
        )
    paths = [folder / f'fold{number}' / 'iter_2.pth' for number in range(3)]
    write_ensemble(folder / 'ensemble.json', paths)
    write_ensemble(folder / 'one.json', paths[1:2])
    return folder


def load(path, device='cpu', **test_cfg):
    ensemble = Ensemble.read(path)
    model = ensemble.model_config(config('TissueSegmentor', {**dict(mode='whole'), **test_cfg}))
    model = MODELS.build(model)
    ensemble.load_into(model)
    return model.eval().to(device)


def image(device, count=1):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(3)).to(device)


@torch.no_grad()
def mean(members, x):
    """Average the probabilities of the members in float64."""
    return torch.stack([m.whole_inference(x, [{}] * len(x)).double().softmax(1) for m in members]).mean(0)


@torch.no_grad()
def test_encode_decode_is_the_logarithm_of_the_mean_probabilities(device, members, folder):
    ensemble, x = load(folder / 'ensemble.json', device), image(device, count=2)
    assert isinstance(ensemble, TissueEnsemble) and len(ensemble.members) == 3
    found = ensemble.encode_decode(x, [dict(img_shape=SIZE)] * 2)
    assert found.dtype == torch.float32 and found.shape == (2, CLASSES, *SIZE)
    torch.testing.assert_close(found.double(), mean(members, x).log(), rtol=1e-4, atol=1e-4)
    assert (mean(members, x).argmax(1) != mean(members[:1], x).argmax(1)).any()  # all members contribute


@torch.no_grad()
def test_raw_outputs_are_averaged(device, members, folder):
    x = image(device)
    expected = torch.stack([m._forward(x).double().softmax(1) for m in members]).mean(0).log()
    found = load(folder / 'ensemble.json', device)(x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sliding_windows_with_logits_and_labels(device, members, folder):
    """Windows are placed and blended as with a single network."""
    x, total = image(device), torch.zeros(CLASSES, *SIZE, dtype=torch.float64, device=device)
    number = torch.zeros(SIZE, device=device)
    for top in (0, 32):
        for left in (0, 32, 64):
            window = np.s_[..., top : top + 64, left : left + 48]
            total[window] += mean(members, x[window])[0].log()
            number[window] += 1
    settings = {**SLIDE, 'stride': (32, 32)}
    kept = load(folder / 'ensemble.json', device, **settings, keep_logits=True).predict(x, samples(1, SIZE))[0]
    torch.testing.assert_close(kept.seg_logits.data.double(), total / number, rtol=1e-4, atol=1e-4)
    labels = load(folder / 'ensemble.json', device, **settings).predict(x, samples(1, SIZE))[0].pred_sem_seg.data
    torch.testing.assert_close(labels, kept.pred_sem_seg.data)


@torch.no_grad()
def test_symmetries(device, members, folder):
    x = image(device)
    expected = average_symmetries(lambda windows: mean(members, windows).log(), x, 8)
    sample = load(folder / 'ensemble.json', device, symmetries=8, keep_logits=True).predict(x, samples(1, SIZE))[0]
    torch.testing.assert_close(sample.seg_logits.data.softmax(0).double(), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('symmetries', [1, 2])
@torch.no_grad()
def test_disagreement_is_the_divergence_of_the_members(device, folder, members, symmetries):
    """Compared with the definition of the Jensen-Shannon divergence by Kullback-Leibler divergences from the mean."""
    ensemble = load(folder / 'ensemble.json', device, symmetries=symmetries)
    raw = np.random.default_rng().integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    maps = dict(disagreement=np.empty(SIZE, np.uint8), entropy=np.empty(SIZE, np.uint8))
    labels = ensemble.label_image(raw, maps=maps)
    x = preprocessed(ensemble, raw[None], device)

    def probabilities(member):
        scores = average_symmetries(lambda y: member.encode_decode(y, [dict(img_shape=y.shape[2:])]), x, symmetries)
        return scores.softmax(1) if symmetries == 1 else scores

    each = [probabilities(member) for member in members]
    mean = sum(each) / len(each)
    divergence = sum((p * (p / mean).log()).sum(1) for p in each) / len(each) / np.log(3)
    entropy = -(mean * mean.log()).sum(1) / np.log(mean.shape[1])
    for name, expected in (('disagreement', divergence), ('entropy', entropy)):
        assert np.abs(maps[name] - 255 * expected[0].cpu().numpy()).max() < 0.6
    assert maps['disagreement'].max() > 0
    top = mean[0].sort(0).values
    clear = (top[-1] - top[-2] > 1e-5).cpu().numpy()
    np.testing.assert_array_equal(labels[clear], mean[0].argmax(0).cpu().numpy()[clear])
    assert (labels == ensemble.label_image(raw)).mean() > 0.999


@torch.no_grad()
def test_raw_images_are_labelled_like_preprocessed_ones(device, folder):
    ensemble = load(folder / 'ensemble.json', device, **SLIDE)
    raw = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    x = (torch.from_numpy(raw).to(device).permute(2, 0, 1)[None].float() - ensemble.data_preprocessor.mean) / (
        ensemble.data_preprocessor.std
    )
    np.testing.assert_array_equal(ensemble.label_image(raw), ensemble.predict(x)[0].pred_sem_seg.data[0].cpu().numpy())


@torch.no_grad()
@pytest.mark.parametrize('settings', [{}, SLIDE, dict(symmetries=4)])
def test_ensemble_of_one_equals_its_member(device, members, folder, settings):
    ensemble, member = (
        load(folder / 'one.json', device, **settings),
        load(folder / 'fold1' / 'iter_2.pth', device, **settings),
    )
    a, b = (model.predict(image(device), samples(1, SIZE))[0].pred_sem_seg.data for model in (ensemble, member))
    assert type(member) is not TissueEnsemble is type(ensemble) and (a == b).all()


@torch.no_grad()
def test_half_precision_is_averaged_in_float32(device, members, folder):
    with torch.autocast(device.type, torch.bfloat16):
        found = load(folder / 'ensemble.json', device).encode_decode(image(device), [dict(img_shape=SIZE)])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(1), torch.ones(1, *SIZE, device=device))


def test_invalid_ensembles_are_rejected(folder):
    with pytest.raises(IgniteError, match='one by one'):
        load(folder / 'ensemble.json').loss(image('cpu'), samples(1, SIZE))
    with pytest.raises(IgniteError, match='EncoderDecoder'):
        Ensemble.read(folder / 'ensemble.json').model_config(config('EncoderDecoder', SLIDE))
    with pytest.raises(IgniteError, match='size'):
        MODELS.build(dict(config('TissueEnsemble', SLIDE), size=0))
    with pytest.raises(IgniteError, match='out_channels=1'):
        MODELS.build(dict(config('TissueEnsemble', SLIDE, out_channels=1), size=2))


@pytest.mark.parametrize(
    'content, word',
    [
        (None, 'is not a file'),
        ('{"format": 1, "checkpoints": ["fold0/it', 'is not valid JSON'),
        ('\udcff', 'is not UTF-8'),
        ('["fold0/iter_2.pth"]', 'an object was expected'),
        (dict(format=2, checkpoints=['fold0/iter_2.pth']), '2 as format; 1 was expected'),
        (dict(format=1), 'lacks checkpoints'),
        (dict(format=1, checkpoints=[]), 'a list of 1 to 64 paths was expected'),
        (dict(format=1, checkpoints='fold0/iter_2.pth'), 'a list of 1 to 64 paths was expected'),
        (dict(format=1, checkpoints=[3]), 'a list of 1 to 64 paths was expected'),
        (dict(format=1, checkpoints=['/fold0/iter_2.pth']), 'the path of a file inside'),
        (dict(format=1, checkpoints=['../iter_2.pth']), 'the path of a file inside'),
        (dict(format=1, checkpoints=['fold0/../../iter_2.pth']), 'the path of a file inside'),
        (
            dict(format=1, checkpoints=['fold0/iter_2.pth', 'fold9/iter_2.pth']),
            "fold9/iter_2.pth', which is not a file",
        ),
        (dict(format=1, checkpoints=['fold0']), 'which is not a file'),
        (dict(format=1, checkpoints=['fold0/iter_2.pth', './fold0/iter_2.pth']), 'twice'),
    ],
)
def test_invalid_files_are_rejected(folder, content, word):
    path = folder / 'wrong.json'
    path.unlink(missing_ok=True)
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(IgniteError, match=word) as error:
        Ensemble.read(path)
    assert 'wrong.json' in str(error.value)


@pytest.mark.parametrize('number', range(2))
@pytest.mark.parametrize('fault', ['missing', 'more', 'shape'])
def test_members_are_loaded_strictly(members_on_cpu, tmp_path, number, fault):
    """Include the first member, which is the ensemble itself."""
    for index in range(2):
        weights = {k: v.clone() for k, v in members_on_cpu[index].state_dict().items()}
        if index == number:
            if fault == 'missing':
                del weights['decode_head.conv_seg.bias']
            else:
                weights['others.0.x' if fault == 'more' else 'decode_head.conv_seg.bias'] = torch.ones(99)
        torch.save(dict(state_dict=weights), tmp_path / f'{index}.pth')
    write_ensemble(tmp_path / 'ensemble.json', [tmp_path / '0.pth', tmp_path / '1.pth'])
    with pytest.raises(IgniteError, match=f'{number}.pth is a checkpoint of another model'):
        load(tmp_path / 'ensemble.json')
