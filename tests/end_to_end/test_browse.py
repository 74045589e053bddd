"""The output folder of tools/browse_dataset.py."""

import base64
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import DEMO_CONFIG, tool
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image

from mmseg_ignite.apis import browse, load_config
from mmseg_ignite.datasets.prepared import image_path, label_path
from mmseg_ignite.files import result_file
from mmseg_ignite.labels import CLASSES, IGNORE
from mmseg_ignite.visualization import dataset_plots

CROPS, DRAWS, SIZE = 14, 50, 64


def arguments(prepared, out, config=DEMO_CONFIG, crops=CROPS, draws=DRAWS):
    return [config, '--out', out, '--crops', crops, '--draws', draws, '--cfg-options', f'data_root={prepared}',
            f'train_dataloader.dataset.crops.crop_size=({SIZE},{SIZE})']  # fmt: skip


class Page(HTMLParser):
    """Attributes of all tags, cells of the table, and visible text; fails on tags that do not match."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.rows, self.text, self._open = [], [], '', []
        self.feed(path.read_text(encoding='utf-8'))
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta', 'img'):
            self._open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('th', 'td'):
            self.rows[-1].append('')

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ('th', 'td'):
            self.rows[-1][-1] += data
        elif 'style' not in self._open:
            self.text += data

    def column(self, name):
        """Return {class: text of a column}."""
        return {row[0]: row[self.rows[0].index(name)] for row in self.rows[1:]}


def dataset_of(prepared, config=DEMO_CONFIG):
    cfg = load_config(config, {'data_root': str(prepared), 'train_dataloader.dataset.crops.crop_size': (SIZE, SIZE)})
    init_default_scope('mmseg')
    return DATASETS.build(cfg.train_dataloader.dataset)


@pytest.fixture(scope='module')
def browsed(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp('browsed')
    (out / 'notes.txt').write_text('mine')
    (out / 'crops_best.png').write_text('mine')
    (out / 'crops_04.png').write_text('mine')
    for name in ('crops_03.png', 'class_pixels.png'):  # of an earlier call with more crops
        with result_file(out / name) as partial:
            Image.new('L', (9, 9)).save(partial)
    assert tool('browse_dataset', *arguments(prepared, out)) == 0
    return out


@pytest.fixture
def empty_figures(monkeypatch):
    """Draw nothing into the figures, which takes most of the time of a page."""
    empty = lambda figure, path, **_: Image.new('L', (9, 9)).save(path)  # noqa: E731
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', empty)


@pytest.fixture(scope='module')
def page(browsed):
    return Page(browsed / 'dataset.html')


def test_folder_contains_the_outputs_and_keeps_other_files(browsed):
    figures = {'class_pixels', 'class_presence', 'drawn_classes', 'resolutions', 'roi_sizes', 'stains'}
    pictures = {f'{name}.png' for name in figures} | {'crops_01.png', 'crops_02.png'}
    assert {p.name for p in browsed.iterdir()} == pictures | {
        'dataset.html',
        'notes.txt',
        'crops_best.png',
        'crops_04.png',
    }
    for name in ('notes.txt', 'crops_best.png', 'crops_04.png'):
        assert (browsed / name).read_text() == 'mine'
    for name in pictures:
        assert Image.open(browsed / name).width > 600


def test_page_is_self_contained(browsed, page):
    text = re.sub('base64,[^"]*', '', (browsed / 'dataset.html').read_text(encoding='utf-8'))
    assert not re.search(r'https?:|url\(|@import', text)
    assert {tag for tag, _ in page.tags}.isdisjoint({'script', 'link', 'iframe', 'object', 'base'})
    assert all(
        attrs.get(key, 'data:').startswith('data:') for _, attrs in page.tags for key in ('src', 'href', 'srcset')
    )
    pictures = [attrs for tag, attrs in page.tags if tag == 'img']
    assert len(pictures) == 6 + 2
    for attrs in pictures:
        assert len(attrs['alt']) > 20
        kind, content = re.fullmatch(r'data:image/(png|jpeg);base64,(.*)', attrs['src']).groups()
        assert Image.open(io.BytesIO(base64.b64decode(content))).format.lower() == kind


def test_table_matches_the_arrays(prepared, page):
    index = json.loads((prepared / 'index.json').read_text())
    labels = {r['name']: np.load(label_path(prepared, r['name'])) for r in index['rois']}
    patients = {r['name']: r['patient'] for r in index['rois']}
    for c, name in enumerate(CLASSES):
        for part, names in index['splits']['patient-8-1-1'].items():
            assert page.column(f'pixels, {part}')[name] == f'{sum((labels[n] == c).sum() for n in names):,}'
        holders = [n for n in labels if (labels[n] == c).any()]
        assert page.column('ROIs')[name] == str(len(holders))
        assert page.column('patients')[name] == str(len({patients[n] for n in holders}))
    for names in index['splits']['patient-8-1-1'].values():
        assert f'{len(names)} ROIs, {len({patients[n] for n in names})} patients' in page.text


def count(dataset):
    """Return pixels and crops of each class, and the annotated share, from complete samples."""
    labels = np.stack([dataset[0, n]['data_samples'].gt_sem_seg.data[0].numpy() for n in range(DRAWS)])
    classes = range(len(dataset.metainfo['classes']))
    holding = [int((labels == c).any((1, 2)).sum()) for c in classes]
    return [int((labels == c).sum()) for c in classes], holding, float((labels != IGNORE).mean())


def test_shares_match_the_samples(prepared, page):
    pixels, holding, annotated = count(dataset_of(prepared))
    for c, name in enumerate(CLASSES):
        found = [page.column(x)[name] for x in ('share in the sampled crops', 'crops that contain it')]
        expected = 100 * pixels[c] / sum(pixels), 100 * holding[c] / DRAWS
        assert [float(text.removesuffix(' %')) for text in found] == pytest.approx(expected, rel=0.051)
    assert f'{100 * annotated:.0f} % are annotated' in page.text


def holds(sheet, picture):
    """Return whether a sheet contains a picture exactly."""
    height, width = picture.shape[:2]
    first = (sheet[: -height + 1, : -width + 1] == picture[0, 0]).all(-1)
    return any(np.array_equal(sheet[y : y + height, x : x + width], picture) for y, x in np.argwhere(first))


def test_sheets_show_the_samples_in_rgb(prepared, browsed):
    dataset = dataset_of(prepared)
    sheets = [np.array(Image.open(browsed / f'crops_0{i}.png')) for i in (1, 2)]
    for n in range(CROPS):
        rgb = dataset[0, n]['inputs'].numpy()[::-1].transpose(1, 2, 0)
        assert holds(sheets[n // 12], rgb.repeat(5, 0).repeat(5, 1))


def test_fewer_classes_keep_their_names_and_colours(prepared, tmp_path, monkeypatch, empty_figures):
    """The samples of such a config have ids 0 and 1, in the order of the config."""
    config = tmp_path / 'two.py'
    train = json.loads((prepared / 'index.json').read_text())['splits']['patient-8-1-1']['train']
    labels = np.concatenate([np.load(label_path(prepared, n)).ravel() for n in train])
    low, high = np.sort(np.bincount(labels[labels != IGNORE]).argsort()[-2:])
    names = (CLASSES[high], CLASSES[low])
    config.write_text(f'_base_ = [{str(DEMO_CONFIG)!r}]\n'
                      f'train_dataloader = dict(dataset=dict(metainfo=dict(classes={names})))\n'
                      'model = dict(decode_head=dict(num_classes=2))\n')  # fmt: skip
    seen, sheets, plot = [], [], dataset_plots.plot_sampled_crops
    monkeypatch.setattr(dataset_plots, 'plot_sampled_crops', lambda crops: seen.append(crops) or plot(crops))
    monkeypatch.setattr(
        'mmseg_ignite.visualization.training_crops.draw_contact_sheet',
        lambda crops, title: sheets.extend(crops) or Image.new('RGB', (9, 9)),
    )
    cfg = load_config(config, {'data_root': str(prepared), 'train_dataloader.dataset.crops.crop_size': (SIZE, SIZE)})
    path = browse(cfg, tmp_path / 'out', crops=3, draws=DRAWS)
    dataset = dataset_of(prepared, config)
    (sampled,) = seen
    pixels, holding, annotated = count(dataset)
    assert sampled.pixels[[high, low]].tolist() == pixels and sampled.pixels.sum() == sum(pixels)
    assert sampled.holding[[high, low]].tolist() == holding
    assert sampled.annotated == pytest.approx(annotated)
    expected = [(labels == c).sum() if c in (low, high) else 0 for c in range(16)]
    assert sampled.data_pixels.tolist() == expected
    for n, crop in enumerate(sheets):
        ids = dataset[0, n]['data_samples'].gt_sem_seg.data[0].numpy()
        np.testing.assert_array_equal(crop.labels, np.select([ids == 0, ids == 1], [high, low], IGNORE))
    assert 'Not trained in this config' in Page(path).text and len(sheets) == 3


STOCK = """_base_ = [{base!r}]
train_dataloader = dict(dataset=dict(_delete_=True, type='IGNITEDataset', split='train', pipeline=[
    dict(type='LoadIGNITERegion'),
    dict(type='RandomResize', scale=(224, 192), ratio_range=(2.0, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(64, 64)), dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]))
"""


def test_stock_transforms_are_shown_with_a_note(prepared, tmp_path, monkeypatch, empty_figures):
    config, out, shown = tmp_path / 'stock.py', tmp_path / 'out', []
    config.write_text(STOCK.format(base=str(DEMO_CONFIG)))
    out.mkdir()
    with result_file(out / 'drawn_classes.png') as partial:  # of an earlier call
        Image.new('L', (9, 9)).save(partial)
    monkeypatch.setattr(
        'mmseg_ignite.visualization.training_crops.draw_contact_sheet',
        lambda crops, title: shown.append(crops) or Image.new('RGB', (9, 9)),
    )
    for _ in range(2):
        page = Page(browse(load_config(config, dict(data_root=str(prepared))), out, crops=2))
    assert 'no crop stream' in page.text and 'crops that contain it' not in page.rows[0]
    assert not (out / 'drawn_classes.png').exists()
    for first, again in zip(*shown):  # a function of the seed, at the resolution after resizing
        np.testing.assert_array_equal(first.image, again.image)
        assert first.image.shape[0] == 64 and first.train_id is None
        assert first.um_per_px == pytest.approx(0.5 * 96 / (2 * 192), rel=0.2)


def test_hostile_names_are_escaped(prepared, tmp_path):
    data, evil = tmp_path / '<b>data&', '<script>alert(1)</script>'
    shutil.copytree(prepared, data)
    index = json.loads((data / 'index.json').read_text())
    patient = index['rois'][0]['patient']
    for roi in index['rois']:
        roi['source'], roi['scanner'] = '$\\frac{', f'_{roi["patient"]}<i>'
        if roi['patient'] == patient:
            roi['patient'] = evil
            np.save(image_path(data, roi['name']), np.full_like(np.load(image_path(data, roi['name'])), 255))
    (data / 'index.json').write_text(json.dumps(index))
    cfg = load_config(DEMO_CONFIG, {'data_root': str(data), 'train_dataloader.dataset.crops.crop_size': (64, 64)})
    page = Page(browse(cfg, tmp_path / 'out', crops=1, draws=1))
    assert evil in page.text and '<b>data&' in page.text  # the patient with blank slides is listed
    assert not {'script', 'b', 'i'} & {tag for tag, _ in page.tags}


def test_data_root_that_is_not_utf8(prepared, tmp_path, empty_figures):
    data = tmp_path / os.fsdecode(b'r\xe9')
    data.symlink_to(prepared)
    cfg = load_config(DEMO_CONFIG, {'data_root': str(data), 'train_dataloader.dataset.crops.crop_size': (64, 64)})
    assert 'udce9' in Page(browse(cfg, tmp_path / 'out', crops=1, draws=1)).text


def wrong(prepared, tmp_path):
    """Return wrong arguments, each with a word that the error must contain."""
    (tmp_path / 'file').write_text('')
    texts = dict(
        other="train_dataloader = dict(dataset=dict(_delete_=True, type='ADE20KDataset', data_root='x'))",
        unpacked='train_dataloader = dict(dataset=dict(pipeline=[dict(type="RandomDihedral")]))',
        unknown='train_dataloader = dict(dataset=dict(pipeline=[dict(type="NoSuchTransform")]))',
        argument='train_dataloader = dict(dataset=dict(crops=dict(size=3)))',
        nothing='train_dataloader = dict(_delete_=True)',
    )
    for name, text in texts.items():
        (tmp_path / f'{name}.py').write_text(f'_base_ = [{str(DEMO_CONFIG)!r}]\n{text}\n')
    out, root = tmp_path / 'out', ['--cfg-options', f'data_root={prepared}']
    return [
        (['nowhere.py', '--out', out], 'nowhere.py'),
        ([DEMO_CONFIG, '--out', out, '--cfg-options', 'data_root=no/such/data'], 'no/such/data'),
        ([DEMO_CONFIG, '--out', out, *root, 'protocol=fold9'], 'fold9'),
        ([DEMO_CONFIG, '--out', out, '--crops', '-1', *root], '--crops'),
        ([DEMO_CONFIG, '--out', out, '--draws', '-1', *root], '--draws'),
        ([DEMO_CONFIG, '--out', tmp_path / 'file', *root], 'file'),
        ([DEMO_CONFIG, '--out', tmp_path / 'file' / 'below', *root], 'below'),
        ([DEMO_CONFIG, '--out', '/proc/no/such', *root], '/proc/no/such'),
        ([tmp_path / 'other.py', '--out', out, *root], 'ADE20KDataset'),
        ([tmp_path / 'unpacked.py', '--out', out, *root], 'PackSegInputs'),
        ([tmp_path / 'unknown.py', '--out', out, *root], 'NoSuchTransform'),
        ([tmp_path / 'argument.py', '--out', out, *root], 'size'),
        ([tmp_path / 'nothing.py', '--out', out, *root], 'training data set'),
    ]


@pytest.mark.parametrize('number', range(13))
def test_wrong_arguments_end_with_one_sentence_and_status_2(prepared, tmp_path, capsys, number):
    call, word = wrong(prepared, tmp_path)[number]
    assert tool('browse_dataset', *call) == 2
    errors = capsys.readouterr().err
    assert word in errors and 'Traceback' not in errors
    assert len([x for x in errors.splitlines() if x.startswith('error: ')]) == 1
    assert not list(tmp_path.glob('out/*'))


def test_without_crops_and_draws_their_pictures_are_omitted(prepared, tmp_path, empty_figures):
    assert tool('browse_dataset', *arguments(prepared, tmp_path / 'out', crops=0, draws=0)) == 0
    assert not list(tmp_path.glob('out/crops_*')) and not (tmp_path / 'out' / 'drawn_classes.png').exists()


def test_sheets_that_do_not_fit_on_the_page_stay_in_the_folder(prepared, tmp_path, monkeypatch, empty_figures):
    monkeypatch.setattr('mmseg_ignite.visualization.training_crops._PAGE_BYTES', 0)
    assert tool('browse_dataset', *arguments(prepared, tmp_path, crops=1, draws=0)) == 0
    page = Page(tmp_path / 'dataset.html')
    assert [tag for tag, _ in page.tags].count('img') == 5 and '0 of 1 contact sheets' in page.text
    assert Image.open(tmp_path / 'crops_01.png').width > 600
