"""Files that another person wrote: hostile and damaged examples of each kind end in one sentence, or do no harm."""

import io
import json
import os
import re
import threading
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, without_figures

from mmseg_ignite.apis import Predictor, compare_runs, rescore
from mmseg_ignite.apis.fold_training import Fold
from mmseg_ignite.apis.publishing import ensemble_scores
from mmseg_ignite.apis.scoring import read_groupings
from mmseg_ignite.engine.ensembles import MAX_MEMBERS, Ensemble, write_ensemble
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import Evaluation, write_run
from mmseg_ignite.evaluation.tables import read_csv
from mmseg_ignite.files import is_ours
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.models import TissueEnsemble
from mmseg_ignite.spreadsheets import csv_cell, csv_text
from mmseg_ignite.untrusted import MAX_GB_VARIABLE, read_arrays
from mmseg_ignite.visualization.curves import read_scalars
from mmseg_ignite.visualization.score_plots import write_figures

CLASS_NAMES = ('a', 'b')
DEEP = '[' * 5000 + ']' * 5000


def counts(**changes):
    """Return valid arrays of three ROIs and two classes, with changes; None removes an array."""
    names = [f'roi{number}' for number in range(3)]
    metadata = [dict(roi=name, patient=str(number % 2), um_per_px=0.5) for number, name in enumerate(names)]
    arrays = dict(names=names, classes=CLASS_NAMES, matrices=np.full((3, 2, 2), 5), metadata=json.dumps(metadata))
    arrays |= dict(boundary=np.full((3, 2, 4), 2), boundary_tolerance_um=1.5, unpredicted=np.ones((3, 2), int))
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def metadata(**changes):
    """Return the metadata of :func:`counts` as JSON, with changes to the second ROI."""
    found = json.loads(counts()['metadata'])
    found[1].update(changes)
    return json.dumps(found)


def refused(call, *words, path=None):
    """Check that a call ends in one sentence with these words; return the sentence."""
    with pytest.raises(IgniteError) as caught:
        call()
    text = str(caught.value)
    assert '\n' not in text and len(text) < 2000 and all(word in text for word in words), text
    assert path is None or str(path) in text, text
    text.encode('utf-8', 'surrogateescape')
    return text


def test_valid_counts_are_read(tmp_path):
    np.savez_compressed(tmp_path / 'confusion.npz', **counts())
    assert Evaluation.load(tmp_path).metrics(samples=0)['rois'] == 3
    for changes in (
        dict(metadata=None),
        dict(names=['a/b.npy', '\udcff', '한글 1'], metadata=None),
        dict(boundary=None),
    ):
        np.savez(tmp_path / 'confusion.npz', **counts(**changes))
        assert len(Evaluation.load(tmp_path).names) == 3


@pytest.mark.parametrize(
    'changes, word',
    [
        (dict(matrices=np.full((3, 2, 2), -1)), 'matrices has -1'),
        (dict(matrices=np.full((3, 2, 2), 2**62)), 'below 2 ** 53'),
        (dict(matrices=np.full((3, 2, 2), 2**63, np.uint64)), 'below 2 ** 53'),
        (dict(matrices=np.full((3, 2, 2), 2**50)), 'below 2 ** 53'),
        (dict(matrices=np.full((3, 2, 2), np.nan)), 'whole numbers'),
        (dict(matrices=np.ones((2, 2, 2), int)), 'shape'),
        (dict(matrices=np.ones((3, 3, 3), int)), 'shape'),
        (dict(matrices=None), 'lacks matrices'),
        (dict(unpredicted=np.full((3, 2), -5)), 'unpredicted has -5'),
        (dict(boundary=np.ones((3, 2, 3), int)), 'shape'),
        (dict(boundary=np.tile([1, 2, 1, 1], (3, 2, 1))), 'exceeds its whole'),
        (dict(boundary_tolerance_um=np.nan), 'boundary_tolerance_um'),
        (dict(boundary_tolerance_um=None), 'boundary_tolerance_um'),
        (dict(boundary_tolerance_um=[1.0, 2.0]), 'boundary_tolerance_um'),
        (dict(confidence=np.full((3, 15, 3), np.nan), metadata=None), 'not finite'),
        (dict(confidence=np.full((3, 15, 3), -1.0)), 'confidence has -1'),
        (dict(entropy=np.tile([1.0, 3.0], (3, 20, 1))), 'exceeds its whole'),
        (dict(names=['a', 'a', 'b'], metadata=None), 'twice'),
        (dict(names=['a', 'b', ''], metadata=None), 'without control characters'),
        (dict(names=['a', 'b', 'c\x1b[2J'], metadata=None), 'without control characters'),
        (dict(names=['a', 'b', '\ud800'], metadata=None), 'without control characters'),
        (dict(names=['a', 'b', 'x' * 5000], metadata=None), 'without control characters'),
        (dict(names=np.arange(3), metadata=None), '100000 names'),
        (dict(classes=['a', 'a']), 'twice'),
        (dict(classes=['a', 'b' * 300]), 'at most 200 characters'),
        (dict(classes=[['a', 'b']]), '255 names'),
        (dict(metadata='{'), 'not valid JSON'),
        (dict(metadata=DEEP), 'nested too deeply'),
        (dict(metadata='{}'), 'a list was expected'),
        (dict(metadata=metadata(roi='other')), 'belong to other ROIs'),
        (dict(metadata=metadata(patient=['1'])), 'patient'),
        (dict(metadata=metadata(um_per_px=-0.5)), 'um/px'),
        (dict(metadata=metadata(um_per_px=10**400)), 'um/px'),
        (dict(metadata=metadata(organ=float('nan'))), 'not valid JSON'),
        (dict(metadata=metadata(organ='\ud800')), 'organ'),
        (dict(metadata=metadata(**{f'column {n}': n for n in range(50)})), 'columns'),
        (dict(names=np.array(['a', 'b', None], object)), 'type object'),
        (dict(matrices=np.zeros(12, [('x', int)])), 'type'),
    ],
)
def test_counts_that_are_none_are_refused(tmp_path, changes, word):
    path = tmp_path / 'confusion.npz'
    np.savez_compressed(path, **counts(**changes))
    for call in (lambda: Evaluation.load(tmp_path), lambda: rescore(tmp_path, samples=0, report=None)):
        refused(call, word, path=path)


def npy(header, data=b'', version=b'\x01\x00'):
    """Return the bytes of an .npy file with any header."""
    text = header.encode() + b'\n'
    return b'\x93NUMPY' + version + len(text).to_bytes(2, 'little') + text + data


def archive(path, method=zipfile.ZIP_DEFLATED, **entries):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of names that occur twice
        with zipfile.ZipFile(path, 'w', method) as target:
            for name, content in entries.items():
                target.writestr(f'{name.removesuffix("_again")}.npy', content)


@pytest.mark.parametrize(
    'content, word',
    [
        (npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,)}"), 'another size'),
        (npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-1, -1)}", bytes(8)), 'another size'),
        (npy("{'descr': '<U0', 'fortran_order': False, 'shape': (1099511627776,)}"), 'another size'),
        (npy("{'descr': '<i8', 'fortran_order': False, 'shape': (3,)}", bytes(8)), 'another size'),
        (npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1,)}", bytes(800)), 'another size'),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b'cos\nsystem\n'), 'type object'),
        (npy("{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}", b'\xff' * 4), 'not text'),
        (npy('(' * 5000), 'cannot be read'),
        (npy("{'descr': '<i8'}"), 'cannot be read'),
        (npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1,)}", bytes(8), b'\x09\x00'), 'version'),
        (b'', 'cannot be read'),
    ],
)
def test_arrays_with_impossible_headers_are_refused(tmp_path, content, word):
    archive(path := tmp_path / 'confusion.npz', names=content)
    refused(lambda: read_arrays(path), word, path=path)
    refused(lambda: Evaluation.load(path), word, path=path)


def test_damaged_archives_are_refused(tmp_path):
    path = tmp_path / 'confusion.npz'
    stream = io.BytesIO()
    np.save(stream, np.arange(1000))
    archive(path, names=stream.getvalue(), names_again=stream.getvalue())
    refused(lambda: read_arrays(path), 'twice', path=path)
    archive(path, zipfile.ZIP_LZMA, names=stream.getvalue())
    refused(lambda: read_arrays(path), 'another way than deflate', path=path)
    archive(path, zipfile.ZIP_STORED, names=stream.getvalue())
    content = path.read_bytes()
    for wrong in (content[:300], content[:200] + b'\xff' + content[201:], b'', b'text', content[:-30]):
        path.write_bytes(wrong)
        refused(lambda: read_arrays(path), path=path)
    refused(lambda: read_arrays(tmp_path / 'none.npz'), 'No such file')
    archive(path, **{f'n{number}': stream.getvalue() for number in range(65)})
    refused(lambda: read_arrays(path), '65 arrays')


def test_a_small_file_with_large_arrays_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setenv(MAX_GB_VARIABLE, '0.02')
    path = tmp_path / 'confusion.npz'
    np.savez_compressed(path, **counts(matrices=np.zeros((3, 2, 10**6), int)))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        refused(lambda: Evaluation.load(path), 'GB when decoded', MAX_GB_VARIABLE, path=path)
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()
    np.savez_compressed(path, **counts(metadata='[' + '[],' * 400_000 + '[]]'))  # small text, large as Python objects
    refused(lambda: Evaluation.load(path), 'metadata of', MAX_GB_VARIABLE, path=path)


METRICS = dict(
    seen_patients=['1', 2], encoding='other', use_context=1, shift='unknown', data='a\0b', predictions=3, checkpoint=['x'],
    provenance=dict(seed=[[1]]), folds=dict(rows=[]), ensemble=[], schema_version=2, classes=dict(a=3), mIoU=101.0,
    intervals=dict(level=95), boundary=dict(classes={}), split={}, config='x' * 5000,
)  # fmt: skip


@pytest.mark.parametrize('key', [*METRICS, 'lacks', 'text', 'deep', 'NaN', 'latin'])
def test_damaged_metrics_are_refused(tmp_path, key):
    np.savez_compressed(tmp_path / 'confusion.npz', **counts())
    path = tmp_path / 'metrics.json'
    rescore(tmp_path, samples=0, report=None)
    known = json.loads(path.read_text())
    known |= {key: METRICS[key]} if key in METRICS else {}
    texts = dict(
        lacks='{"mIoU": 1}', text='text', deep=DEEP, NaN='{"schema_version": 1, "mIoU": NaN}', latin='"\udcff"'
    )
    path.write_bytes(texts.get(key, json.dumps(known)).encode('utf-8', 'surrogateescape'))
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test' / 'metrics.json').write_bytes(path.read_bytes())
    for call in (
        lambda: rescore(tmp_path, tmp_path / 'out', samples=0, report=None),
        lambda: compare_runs(tmp_path, tmp_path, samples=100),
        lambda: ensemble_scores(tmp_path),
    ):
        refused(call, 'metrics.json')
    assert not (tmp_path / 'out').exists()


@pytest.fixture
def members(tmp_path):
    """Three files, and one outside the folder of the ensemble."""
    folder = tmp_path / 'folder'
    folder.mkdir()
    for number in range(3):
        (folder / f'{number}.pth').write_bytes(b'%d' % number)
    (tmp_path / 'outside.pth').write_bytes(b'x')
    (folder / 'link.pth').symlink_to('../outside.pth')
    (folder / 'parent').symlink_to('..')
    (folder / 'inside.pth').symlink_to('0.pth')
    os.link(folder / '1.pth', folder / 'same.pth')
    return folder


@pytest.mark.parametrize(
    'content, word',
    [
        (dict(checkpoints=['0.pth', 'link.pth']), 'a file inside'),
        (dict(checkpoints=['parent/outside.pth']), 'a file inside'),
        (dict(checkpoints=['../outside.pth']), 'a file inside'),
        (dict(checkpoints=['0.pth', 'inside.pth']), 'the same file as'),
        (dict(checkpoints=['1.pth', 'same.pth']), 'the same file as'),
        (dict(checkpoints=['0.pth', './0.pth']), 'the same file as'),
        (dict(checkpoints=['0.pth\0']), '1 to 64 paths'),
        (dict(checkpoints=['x' * 300]), 'not a file'),
        (dict(checkpoints=['a/' * 1500 + 'b']), 'not a file'),
        (dict(checkpoints=['\ud800.pth']), '1 to 64 paths'),
        (dict(checkpoints=['0.pth'] * (MAX_MEMBERS + 1)), '1 to 64 paths'),
        (dict(checkpoints=['0.pth'], patients='all'), 'patients'),
        (dict(checkpoints=['0.pth'], patients=[1.5]), 'patients[0]'),
        (dict(checkpoints=['0.pth'], patients=[{}]), 'patients[0]'),
        (dict(checkpoints=['0.pth'], format=True), 'format'),
        (DEEP, 'nested too deeply'),
    ],
)
def test_hostile_ensembles_are_refused(members, content, word):
    path = members / 'ensemble.json'
    path.write_text(content if isinstance(content, str) else json.dumps({'format': 1, **content}))
    refused(lambda: Ensemble.read(path), word, path=path)


@pytest.mark.parametrize('kind', ['bytes', 'weights'])
def test_members_are_checked_before_their_networks_are_built(tmp_path, monkeypatch, kind):
    built = []
    monkeypatch.setattr(TissueEnsemble, '__init__', lambda *_, **__: built.append(1))
    paths = [tmp_path / f'{number}.pth' for number in range(MAX_MEMBERS)]
    for number, path in enumerate(paths):
        path.write_bytes(b'%d' % number)
        if kind == 'weights' and number < 2:
            torch.save(dict(state_dict={'x': torch.ones(1)}), path)
    write_ensemble(tmp_path / 'ensemble.json', paths)
    refused(lambda: Predictor(DEMO_CONFIG, tmp_path / 'ensemble.json', 'cpu'), '0.pth')
    assert built == []


@pytest.mark.parametrize(
    'content, word',
    [
        (dict(checkpoint='../outside.pth'), 'a file name without folders'),
        (dict(checkpoint='link.pth'), 'a file inside'),
        (dict(checkpoint='/0.pth'), 'a file name without folders'),
        (dict(checkpoint='x' * 250), 'a file name without folders'),
        (dict(checkpoint='a\0b'), 'without control characters'),
        (dict(checkpoint='none.pth'), 'not a file'),
        (dict(checkpoint=3), 'checkpoint'),
        (dict(settings=dict(a=3)), 'settings.a'),
        (dict(settings=[]), 'settings'),
        (dict(format=2), 'format'),
        (DEEP, 'nested too deeply'),
    ],
)
def test_hostile_folds_are_refused(members, content, word):
    path = members / 'fold.json'
    path.write_text(content if isinstance(content, str) else json.dumps(dict(format=1, settings={}) | content))
    fold = object.__new__(Fold)  # reading fold.json requires neither a config nor data
    fold.folder = members
    refused(lambda: fold.checkpoint, word, path=path)
    path.write_text(json.dumps(dict(format=1, settings={}, checkpoint='0.pth')))
    assert fold.checkpoint == members / '0.pth'


@pytest.mark.parametrize(
    'content',
    [
        DEEP, f'{{"a": {{"b": {DEEP}}}}}', '[]', '3', '{"a": 3}', '{"a": {"b": "Stroma"}}', '{"a": {"b": [["Stroma"]]}}',
        '{"a": {"b": [1]}}', '{"a": {"\\ud800": ["Stroma"]}}', '{"%s": {"b": ["Stroma"]}}' % ('x' * 300), '{"a": {}}',
        '{"a": {"b": []}}', json.dumps({f'g{n}': {'b': ['Stroma']} for n in range(101)}),
    ],
)  # fmt: skip
def test_hostile_groupings_are_refused(tmp_path, content):
    run, path = tmp_path / 'run', tmp_path / 'g.json'
    write_run(run, Evaluation(['a'], np.ones((1, 16, 16), np.int64), CLASSES), {}, samples=0)
    path.write_text(content)
    refused(lambda: rescore(run, tmp_path / 'out', read_groupings(path), samples=0, report=None))
    assert not (tmp_path / 'out').exists()


def test_damaged_lines_of_a_log_are_skipped(tmp_path):
    path = tmp_path / 'now' / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    lines = [
        '{"loss": 1, "step": 1}', DEEP, '[]', '3', '{"loss": NaN, "lr": 0.5, "step": 2}', '{"loss": 1e999, "step": 3}',
        '{"loss": true, "step": 3}', '{"loss": 2, "step": "x"}', '{"loss": 2, "step": -1}', '{"loss": 2, "step": 1e400}',
        '{"loss": 2, "step": [4]}', '{"loss": 1e300, "step": 4}', '{"\\ud800": 2, "step": 4}', '{"loss',
    ]  # fmt: skip
    path.write_text('\n'.join(lines))
    assert read_scalars(tmp_path) == {'loss': {1: 1.0}, 'step': {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}, 'lr': {2: 0.5}}
    assert read_scalars('x' * 3000) == read_scalars('a\0b') == {}
    path.write_bytes(b'\xff')
    refused(lambda: read_scalars(tmp_path), 'UTF-8', path=path)


def test_no_content_makes_a_file_ours(tmp_path):
    contents = [
        b'',
        b'text',
        b'\xff\xfe',
        DEEP.encode(),
        b'[' * 10**6,
        b'{"written_by": 3}',
        b'{"a": %s}' % (b'9' * 10**5),
    ]
    contents += [b'PK\x05\x06' + bytes(18), b'PK\x05\x06' + b'\xff' * 18, b'\x89PNG\r\n\x1a\n', b'<!-- x -->', b'null']
    for suffix in ('png', 'html', 'svg', 'pdf', 'tex', 'py', 'npz', 'csv', 'txt', 'json', 'other'):
        for number, content in enumerate(contents):
            (path := tmp_path / f'{number}.{suffix}').write_bytes(content)
            assert not is_ours(path), path
        assert not is_ours(tmp_path / f'none.{suffix}') and not is_ours(tmp_path / ('x' * 5000 + f'.{suffix}'))
        assert not is_ours(f'a\0b.{suffix}')
    os.mkfifo(tmp_path / 'pipe.json')
    thread = threading.Thread(target=is_ours, args=(tmp_path / 'pipe.json',), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


HOSTILE = [
    '=1+1',
    '+cmd|x',
    '-2+3',
    '@SUM(A1)',
    '\t=1',
    "'=1",
    "''@x",
    '＝1',
    '-1',
    "it's",
    '<script>alert(1)</script>',
    '$x^^$',
]


def test_names_are_neither_formulas_nor_markup(tmp_path):
    """Spreadsheets run formulas, browsers run scripts, LaTeX runs commands; reading the tables gives the names again."""
    assert [csv_text(csv_cell(name)) for name in HOSTILE] == HOSTILE
    metadata = [
        dict(roi=name.replace('\t', '') + f' {n}', patient=f'p{name}', organ=name) for n, name in enumerate(HOSTILE)
    ]
    metadata.append(dict(metadata[0], roi='last'))
    classes = tuple(name.replace('\t', '') + ' c' for name in HOSTILE)
    matrices = np.full((len(metadata), len(classes), len(classes)), 2)
    evaluation = Evaluation([m['roi'] for m in metadata], matrices, classes, metadata)
    run, context = tmp_path / 'run', dict(split='<script>alert(2)</script>', checkpoint='\\input{x}')
    write_run(run, evaluation, context, {'<script>g': {'=a': [classes[0]], r'\b': 'rest'}}, samples=0)
    with without_figures():
        rescore(run, samples=0)
    assert read_csv(run / 'per_roi.csv')[3]['organ'] == '@SUM(A1)'
    assert [row['roi'] for row in read_csv(run / 'per_roi.csv')] == evaluation.names
    assert [row['organ'] for row in read_csv(run / 'per_roi.csv')] == [m['organ'] for m in metadata]
    for path in (run / 'per_roi.csv', *(run / 'tables').glob('*.csv')):
        cells = [cell for line in path.read_text().splitlines() for cell in re.split(',', line.replace('"', ''))]
        wrong = [c for c in cells if c[:1] in tuple('=+-@\t\r＝') and not re.fullmatch(r'-?[\d.]+(e-\d+)?', c)]
        assert not wrong, (path, wrong)
    page = (run / 'report.html').read_text()
    assert '<script>alert' not in page and '&lt;script&gt;alert(2)' in page
    tex = (run / 'tables' / 'classes.tex').read_text()
    assert r'\$x\textasciicircum{}\textasciicircum{}\$ c' in tex and '<' not in tex.replace(r'\textless{}', '')


def test_names_are_no_formulas_of_figures(tmp_path):
    classes = ('$a^^$', '<b>&', '\\frac')
    evaluation = Evaluation(['roi'], np.ones((1, 3, 3), np.int64), classes)
    write_figures(tmp_path, evaluation.metrics(samples=0), evaluation)
    assert (
        '$a^^$' in (tmp_path / 'confusion.svg').read_text() and '<b>&<' not in (tmp_path / 'confusion.svg').read_text()
    )
