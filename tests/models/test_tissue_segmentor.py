"""TissueSegmentor compared with mmseg's EncoderDecoder with equal weights."""

import copy

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmseg.evaluation import IoUMetric
from mmseg.models import SegTTAModel
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.inference import tiling
from mmseg_ignite.models.segmentors import TissueSegmentor, label_image
from mmseg_ignite.models.segmentors.inference_settings import InferenceSettings
from mmseg_ignite.models.segmentors.window_scores import is_glass, preprocessed

pytestmark = pytest.mark.usefixtures('one_thread')

CLASSES = 5
SLIDE = dict(mode='slide', crop_size=(64, 48), stride=(40, 32))


def config(kind, test_cfg, out_channels=None, **preprocessor):
    """Return the config of a small SegFormer with mmseg's encoder and decoder."""
    return ConfigDict(
        type=kind,
        data_preprocessor=dict(
            type='SegDataPreProcessor', mean=[190.0, 160.0, 180.0], std=[40.0, 50.0, 45.0],
            **{'bgr_to_rgb': True, **preprocessor}),
        backbone=dict(
            type='MixVisionTransformer', embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 2, 2],
            sr_ratios=[8, 4, 2, 1], mlp_ratio=2),
        decode_head=dict(
            type='SegformerHead', in_channels=[8, 16, 16, 16], in_index=[0, 1, 2, 3], channels=16,
            num_classes=2 if out_channels else CLASSES, out_channels=out_channels, norm_cfg=dict(type='BN'),
            **(dict(threshold=0.5) if out_channels else {})),
        train_cfg=dict(), test_cfg=test_cfg)  # fmt: skip


def build(kind, test_cfg, out_channels=None, **preprocessor):
    """Build :func:`config` with random weights in evaluation mode."""
    init_default_scope('mmseg')
    model = MODELS.build(config(kind, test_cfg, out_channels, **preprocessor))
    model.init_weights()
    # One class would win everywhere with initial weights: spread the logits and centre each class.
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1)
    model.eval()
    with torch.no_grad():
        model.decode_head.conv_seg.bias -= model(torch.randn(2, 3, 96, 96)).mean((0, 2, 3))
    return model


@pytest.fixture(scope='module')
def stock_on_cpu():
    return build('EncoderDecoder', SLIDE)


@pytest.fixture
def stock(stock_on_cpu, device):
    return copy.deepcopy(stock_on_cpu).to(device)


def randn(model, *size):
    """Return random numbers on the device of a model."""
    return torch.randn(size, device=next(model.parameters()).device)


def twin(stock, **test_cfg):
    """Return a TissueSegmentor with the weights of the stock model."""
    model = build('TissueSegmentor', {**SLIDE, **test_cfg})
    model.load_state_dict(stock.state_dict(), strict=True)
    return model.to(next(stock.parameters()).device)


def samples(count, size, **meta):
    meta = dict(ori_shape=size, img_shape=size, pad_shape=size) | meta
    return [SegDataSample(metainfo=copy.deepcopy(meta)) for _ in range(count)]


@torch.no_grad()
def both(stock, ours, inputs, **meta):
    """Return the samples of both models; each gets its own metainfo, because mmseg modifies it."""
    size = meta.pop('ori_shape', tuple(inputs.shape[2:]))
    expected = stock.predict(inputs, samples(len(inputs), size, **meta))
    return expected, ours.predict(inputs, samples(len(inputs), size, **meta))


def assert_same_labels(expected, found):
    """Compare where the best class of the stock model leads by more than rounding errors, nearly everywhere."""
    for a, b in zip(expected, found, strict=True):
        labels = b.pred_sem_seg.data
        assert labels.dtype == torch.uint8 and labels.shape == a.pred_sem_seg.data.shape
        top = a.seg_logits.data.sort(0).values
        clear = top[-1] - top[-2] > 1e-3
        assert clear.float().mean() > 0.98 and len(labels.unique()) > 1
        assert torch.equal(labels[0][clear], a.pred_sem_seg.data[0][clear].to(torch.uint8))


def test_it_is_an_encoder_decoder(stock):
    ours = twin(stock)
    assert isinstance(ours, EncoderDecoder) and MODELS.get('TissueSegmentor') is TissueSegmentor
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert TissueSegmentor.loss is EncoderDecoder.loss


@pytest.mark.parametrize('size', [(131, 117), (64, 48), (40, 150), (33, 35)])
@pytest.mark.parametrize('mode', ['slide', 'whole'])
def test_labels_and_logits_match_mmseg(stock, monkeypatch, mode, size):
    monkeypatch.setitem(stock.test_cfg, 'mode', mode)
    inputs = randn(stock, 2, 3, *size)
    expected, found = both(stock, twin(stock, mode=mode), inputs)
    assert_same_labels(expected, found)
    assert all('seg_logits' not in sample for sample in found)
    expected, found = both(stock, twin(stock, mode=mode, keep_logits=True, window_batch=3), inputs)
    assert_same_labels(expected, found)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b.seg_logits.data, a.seg_logits.data, rtol=0, atol=1e-4)


def test_without_data_samples(stock):
    inputs = randn(stock, 2, 3, 70, 90)
    with torch.no_grad():
        assert_same_labels(stock.predict(inputs), twin(stock).predict(inputs))
        assert_same_labels(stock.predict(inputs), twin(stock, mode='slide', keep_logits=True).predict(inputs))


@pytest.mark.parametrize('name', ['padding_size', 'img_padding_size'])
def test_padding_is_removed(stock, name):
    inputs = randn(stock, 1, 3, 90, 80)
    expected, found = both(stock, twin(stock), inputs, ori_shape=(79, 75), **{name: (2, 3, 7, 4)})
    assert found[0].pred_sem_seg.data.shape == (1, 79, 75)
    assert_same_labels(expected, found)


@pytest.mark.parametrize('direction', ['horizontal', 'vertical'])
def test_flips_are_undone(stock, direction):
    expected, found = both(stock, twin(stock), randn(stock, 1, 3, 70, 90), flip=True, flip_direction=direction)
    assert_same_labels(expected, found)
    assert 'seg_logits' not in found[0]


def test_logits_are_resized_to_another_size(stock):
    expected, found = both(stock, twin(stock), randn(stock, 1, 3, 70, 90), ori_shape=(55, 110))
    assert found[0].pred_sem_seg.data.shape == (1, 55, 110)
    assert_same_labels(expected, found)
    assert 'seg_logits' not in found[0]


def test_labels_of_the_right_size_are_not_resized(stock, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('resized')

    monkeypatch.setattr('mmseg.models.segmentors.base.resize', refuse)
    twin(stock).predict(randn(stock, 1, 3, 70, 90), samples(1, (70, 90)))


def test_binary_heads(device):
    stock = build('EncoderDecoder', SLIDE, out_channels=1).to(device)
    ours = build('TissueSegmentor', SLIDE, out_channels=1).to(device)
    ours.load_state_dict(stock.state_dict())
    expected, found = both(stock, ours, randn(stock, 1, 3, 70, 90))
    clear = (expected[0].seg_logits.data - 0.5).abs() > 1e-4  # mmseg stores probabilities for binary heads
    assert clear.float().mean() > 0.98 and len(found[0].pred_sem_seg.data.unique()) == 2
    assert torch.equal(found[0].pred_sem_seg.data[clear], expected[0].pred_sem_seg.data[clear].to(torch.uint8))
    assert 'seg_logits' not in found[0]
    with pytest.raises(IgniteError, match='out_channels=1'):
        ours.label_image(np.zeros((70, 90, 3), np.uint8))


def test_windows_are_batched(stock, monkeypatch):
    ours, sizes = twin(stock, window_batch=2), []
    forward = ours.extract_feat
    monkeypatch.setattr(ours, 'extract_feat', lambda x: sizes.append(tuple(x.shape)) or forward(x))
    ours.predict(randn(stock, 1, 3, 64, 112))  # windows at x = 0, 32 and 64
    assert sizes == [(2, 3, 64, 48), (1, 3, 64, 48)]


@torch.no_grad()
def test_gaussian_weights_match_a_loop(stock):
    inputs = randn(stock, 1, 3, 100, 81)
    total, count = inputs.new_zeros(CLASSES, 100, 81), inputs.new_zeros(100, 81)
    weight = tiling.window_weights((64, 48), 'gaussian').to(inputs.device)
    for y1, y2 in ((0, 64), (36, 100)):
        for x1, x2 in ((0, 48), (32, 80), (33, 81)):
            window = inputs[:, :, y1:y2, x1:x2]
            logits = stock.encode_decode(window, [dict(img_shape=window.shape[2:])])[0]
            total[:, y1:y2, x1:x2] += logits * weight
            count[y1:y2, x1:x2] += weight
    found = twin(stock, weights='gaussian', keep_logits=True).predict(inputs, samples(1, (100, 81)))[0]
    torch.testing.assert_close(found.seg_logits.data, total / count, rtol=0, atol=1e-4)
    uniform = stock.predict(inputs, samples(1, (100, 81)))[0]
    assert (found.seg_logits.data - uniform.seg_logits.data).abs().max() > 1e-3


@pytest.mark.parametrize('mode', ['slide', 'whole'])
@torch.no_grad()
def test_symmetries(stock, mode):
    inputs = randn(stock, 1, 3, 64, 48)  # one window
    mean = 0
    for k in range(4):
        for mirror in (False, True):
            turned = torch.rot90(inputs.flip(3) if mirror else inputs, k, (2, 3))
            logits = stock.encode_decode(turned, [dict(img_shape=turned.shape[2:])]).softmax(1)
            back = torch.rot90(logits, -k, (2, 3))
            mean = mean + (back.flip(3) if mirror else back) / 8
    kept = twin(stock, mode=mode, symmetries=8, keep_logits=True).predict(inputs, samples(1, (64, 48)))[0]
    torch.testing.assert_close(kept.seg_logits.data.softmax(0), mean[0], rtol=0, atol=1e-5)
    found = twin(stock, mode=mode, symmetries=8).predict(inputs, samples(1, (64, 48)))[0]
    top = mean[0].sort(0).values
    clear = top[-1] - top[-2] > 1e-4
    assert torch.equal(found.pred_sem_seg.data[0][clear].long(), mean[0].argmax(0)[clear])


def test_half_precision_logits_are_added_in_float32(stock, monkeypatch):
    inputs = randn(stock, 1, 3, 112, 48)
    ours = twin(stock, stride=(16, 32), keep_logits=True)  # pixels in 1 to 4 windows
    monkeypatch.setattr(ours, 'encode_decode', lambda x, metas: x[:, [0, 1, 2, 0, 1]].bfloat16() * 3)
    found = ours.predict(inputs, samples(1, (112, 48)))[0].seg_logits.data
    assert found.dtype == torch.float32
    expected = (inputs[0, [0, 1, 2, 0, 1]].bfloat16() * 3).float()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@torch.no_grad()
def test_under_autocast(stock):
    inputs = randn(stock, 1, 3, 104, 80)
    # Built outside autocast, which caches weights and would miss that others are loaded.
    keeping, plain = twin(stock, keep_logits=True), twin(stock)
    exact = stock.predict(inputs, samples(1, (104, 80)))[0].seg_logits.data
    with torch.autocast(inputs.device.type, torch.bfloat16):
        expected = stock.predict(inputs, samples(1, (104, 80)))[0].seg_logits.data
        kept = keeping.predict(inputs, samples(1, (104, 80)))[0]
        labels = plain.predict(inputs, samples(1, (104, 80)))[0].pred_sem_seg.data
    found = kept.seg_logits.data
    assert found.dtype == torch.float32
    assert 0 < (found - exact).square().mean() < 2 * (expected - exact).square().mean()
    assert torch.equal(labels, kept.pred_sem_seg.data)


@pytest.mark.parametrize('keep_logits', [False, True])
@pytest.mark.parametrize('accumulator', [None, 'cpu'])
def test_accumulator_is_on_the_requested_device(stock, monkeypatch, accumulator, keep_logits):
    ours, asked = twin(stock, accumulator=accumulator, keep_logits=keep_logits), []
    monkeypatch.setattr(tiling, '_device', lambda image, where: asked.append(where) or image.device)
    ours.predict(randn(stock, 1, 3, 64, 48))
    assert asked == [accumulator]


def test_tta_model_of_mmseg(stock):
    inputs = randn(stock, 1, 3, 70, 90)
    ours = twin(stock, keep_logits=True)
    groups = [samples(1, (70, 90)), samples(1, (70, 90), flip=True, flip_direction='horizontal')]
    for group in groups:
        group[0].set_metainfo(dict(img_path='roi.png'))
    merged = []
    for model in (stock, ours):
        tta = SegTTAModel(module=model)
        with torch.no_grad():
            predictions = [model.predict(x, copy.deepcopy(s)) for x, s in zip((inputs, inputs.flip(3)), groups)]
            merged.append(tta.merge_preds([list(group) for group in zip(*predictions)])[0].pred_sem_seg.data)
    assert (merged[0] == merged[1]).float().mean() > 0.99


def test_mmseg_metrics_accept_the_labels(stock):
    labels = twin(stock).predict(randn(stock, 1, 3, 64, 48))[0].pred_sem_seg.data
    truth = labels[0].long().clone()
    truth[:5] = 255
    areas = IoUMetric.intersect_and_union(labels.squeeze(), truth, CLASSES, 255)
    assert sum(areas[0]) == sum(areas[2]) == (truth != 255).sum()


# label_image


def rgb(size):
    return np.random.default_rng().integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    'test_cfg', [dict(), dict(mode='whole'), dict(weights='gaussian', symmetries=2, accumulator='cpu')]
)
@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_label_image_equals_predict(stock, tmp_path, test_cfg, bgr_to_rgb):
    ours = build('TissueSegmentor', {**SLIDE, **test_cfg}, bgr_to_rgb=bgr_to_rgb).to(next(stock.parameters()).device)
    ours.load_state_dict(stock.state_dict())
    image = rgb((101, 83))
    bgr = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))
    data = dict(inputs=[bgr], data_samples=samples(1, (101, 83)))
    with torch.no_grad():
        expected = ours.test_step(data)[0].pred_sem_seg.data[0].cpu().numpy()
    np.save(tmp_path / 'image.npy', image)
    out, done = np.full((101, 83), 99, np.uint8), []
    found = ours.label_image(np.load(tmp_path / 'image.npy', mmap_mode='r'), out, on_progress=done.append)
    assert found is out and sum(done) > 0
    np.testing.assert_array_equal(found, expected)
    assert (ours.label_image(image[:, :, ::-1]) != expected).any()  # the channel order has an effect


def test_stock_segmentors_are_labelled_by_the_same_windows(stock):
    """Including a preprocessor that pads each window to a multiple of its size."""
    image, ours = rgb((101, 83)), twin(stock)
    expected = ours.label_image(image)
    np.testing.assert_array_equal(label_image(stock, image), expected)
    padding = copy.deepcopy(stock)
    padding.data_preprocessor.test_cfg = dict(size_divisor=128)
    assert label_image(padding, image).shape == (101, 83)


def test_maps_need_an_ensemble_for_disagreement(stock):
    image = rgb((101, 83))
    maps = dict(entropy=np.full((101, 83), 255, np.uint8))
    np.testing.assert_array_equal(label_image(stock, image, maps=maps), label_image(stock, image))
    assert 0 < maps['entropy'].max() < 255 or maps['entropy'].min() < 255
    with pytest.raises(IgniteError, match='an ensemble of at least two'):
        label_image(stock, image, maps=dict(disagreement=np.zeros((101, 83), np.uint8)))


@pytest.mark.parametrize('image', [np.zeros((64, 48), 'u1'), np.zeros((64, 48, 4), 'u1'), np.zeros((64, 48, 3)), [[1]]])
def test_label_image_requires_rgb(stock, image):
    with pytest.raises(IgniteError, match='uint8 RGB was expected'):
        twin(stock).label_image(image)


# glass


def glass(size):
    """Glass with noise of camera and JPEG, and dust."""
    noise = np.random.default_rng().normal(243, 0.8, (*size, 3))
    noise[5, 5] = 180  # a grain of dust
    return noise.round().clip(0, 255).astype(np.uint8)


def pale_pink(size):
    image = glass(size)
    image[:] = np.array([243, 232, 240]) + np.random.default_rng().normal(0, 3, image.shape).round()
    return image


def fat(size):
    """Empty cells between thin, pale walls."""
    image = glass(size)
    image[::40, :] = image[:, ::40] = (228, 200, 220)
    return image


def faint_smear(size):
    """Mucus or tissue out of focus: every pixel is white and colourless, but the window is not flat."""
    return np.broadcast_to(np.linspace(226, 246, size[1])[None, :, None], (*size, 3)).round().astype(np.uint8)


def single_nucleus(size):
    """A single cell in empty space."""
    image = glass(size)
    image[20:30, 20:30] = (120, 80, 150)
    return image


@pytest.mark.parametrize(
    ('make', 'expected'),
    [(glass, True), (pale_pink, False), (fat, False), (single_nucleus, False), (faint_smear, False)],
    ids=lambda value: getattr(value, '__name__', str(value)),
)
def test_glass_detection(stock, device, make, expected):
    ours, image = twin(stock), make((128, 128))
    assert bool(is_glass(ours, image)) is expected
    normalised = preprocessed(ours, image[None], device)[0]
    assert bool(is_glass(ours, normalised)) is expected


def test_glass_is_skipped(stock, device, monkeypatch):
    ours = twin(stock, crop_size=(64, 64), stride=(64, 64), skip_glass=True)
    image = np.concatenate([glass((64, 128)), rgb((64, 128))])
    image[64:, 64:] = glass((64, 64))
    forward, seen = ours.extract_feat, []
    monkeypatch.setattr(ours, 'extract_feat', lambda x: seen.append(len(x)) or forward(x))
    labels = ours.label_image(image)
    assert seen == [1]
    inputs = preprocessed(ours, image[None], device)
    found = ours.predict(inputs, samples(1, (128, 128)))[0].pred_sem_seg.data[0].cpu().numpy()
    assert seen == [1, 1]
    np.testing.assert_array_equal(found, labels)
    assert not labels[:64].any() and not labels[64:, 64:].any()
    tissue = twin(stock, crop_size=(64, 64), stride=(64, 64)).label_image(image)[64:, :64]
    assert (labels[64:, :64] == tissue).mean() > 0.99  # batches of another size round differently
    assert tissue.any()


# settings


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(mode='slides'), 'test_cfg.mode'),
        (dict(weights='hann'), 'test_cfg.weights'),
        (dict(accumulator='disk'), 'test_cfg.accumulator'),
        (dict(symmetries=3), 'test_cfg.symmetries'),
        (dict(symmetries=True), 'test_cfg.symmetries'),
        (dict(skip_glass='yes'), 'test_cfg.skip_glass'),
        (dict(keep_logits=1), 'test_cfg.keep_logits'),
        (dict(window_batch=0), 'test_cfg.window_batch'),
        (dict(window_batch=2.0), 'test_cfg.window_batch'),
        (dict(stride=(65, 48)), 'larger than the crop size'),
        (dict(stride=(0, 48)), 'above 0'),
        (dict(crop_size=(64, -1)), 'above 0'),
        (dict(crop_size=None), 'test_cfg.crop_size'),
        (dict(stride=32), 'test_cfg.stride'),
        (dict(skip_glass=True, mode='whole'), 'skip_glass'),
        (dict(skip_glass=True, keep_logits=True), 'skip_glass'),
    ],
)
def test_invalid_settings_are_rejected_when_built_and_when_used(stock, change, message):
    with pytest.raises(IgniteError, match=message):
        build('TissueSegmentor', {**SLIDE, **change})
    ours = twin(stock)
    ours.test_cfg.update(change)
    with pytest.raises(IgniteError, match=message):
        ours.predict(torch.zeros(1, 3, 64, 48))


@pytest.mark.parametrize('change', [dict(symmetries=2), dict(skip_glass=True)])
def test_binary_heads_reject_settings_that_need_class_probabilities(change):
    with pytest.raises(IgniteError, match='out_channels=1'):
        build('TissueSegmentor', {**SLIDE, **change}, out_channels=1)


def test_windows_at_once_suit_the_device():
    cpu, gpu = torch.device('cpu'), torch.device('cuda')
    slide = dict(mode='slide', crop_size=(8, 8), stride=(6, 6))
    settings = InferenceSettings.of(slide, CLASSES)
    assert (settings.tiling(cpu)['window_batch'], settings.tiling(gpu)['window_batch']) == (4, 16)
    settings = InferenceSettings.of(dict(slide, symmetries=8), CLASSES)
    assert [(settings.tiling(d)['window_batch'], settings.flips_at_once(d)) for d in (cpu, gpu)] == [(1, 4), (4, 4)]
    settings = InferenceSettings.of(dict(slide, window_batch=3), CLASSES)
    assert settings.tiling(cpu)['window_batch'] == settings.tiling(gpu)['window_batch'] == 3
