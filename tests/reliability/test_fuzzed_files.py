"""Randomly damaged files of runs, folds, ensembles and groupings: each is read, or ends in one sentence."""

import json
import random
import shutil

import numpy as np
import pytest
from conftest import without_figures
from mutations import mutated_bytes, mutated_json
from PIL import Image

from mmseg_ignite.apis import compare_runs, rescore, score_folder
from mmseg_ignite.apis.cross_validation import _pooled
from mmseg_ignite.apis.fold_training import Fold
from mmseg_ignite.apis.scoring import read_groupings
from mmseg_ignite.datasets.prepared import label_path, read_index
from mmseg_ignite.engine.ensembles import Ensemble
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import Evaluation, write_run
from mmseg_ignite.evaluation.per_roi import fold_scores
from mmseg_ignite.evaluation.run import score_roi
from mmseg_ignite.evaluation.text_table import table
from mmseg_ignite.files import is_ours
from mmseg_ignite.labels import CLASSES

GROUPINGS = {'tumour': {'tumour': ['Tumor epithelium'], 'other': 'rest'}, 'two': {'a': ['Stroma'], 'b': ['Necrosis']}}
GROUPINGS['two']['b'] = ['Necrotic tissue', 'Macrophages']
SCALARS = [{'loss': 1.5 / n, 'decode.dice': 0.5, 'lr': 1e-4, 'mIoU': 10.0 * n, 'step': n} for n in range(1, 4)]
COUNTS = dict(
    counts=45, metadata=30, metrics=50, metrics_bytes=10, tested=10, pooled=20, ensemble=40, fold=20, groupings=40,
    scalars=15, labels=25,
)  # fmt: skip
"""Mutations of each kind."""


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """Write the work dir of a cross-validation that was tested, as far as scoring reads it, and another run."""
    folder = tmp_path_factory.mktemp('work')
    rng, results = np.random.default_rng(3), []
    for number in range(6):
        truth = rng.choice([0, 1, 3, 255], (20, 24)).astype(np.uint8)
        prediction = np.where(rng.random(truth.shape) < 0.7, truth, 1).astype(np.uint8)
        prediction[:2] = 255
        metadata = dict(roi=f'roi{number}', patient=str(number // 2), um_per_px=0.5, organ=['lung', ''][number % 2])
        results.append(
            score_roi(metadata, truth, prediction, 16, 1.5, rng.dirichlet(np.ones(16), truth.shape).transpose(2, 0, 1))
        )
    evaluation = Evaluation.collect(results, CLASSES, 1.5)
    alone = evaluation.metrics(samples=0)
    facts = dict(
        split='val', protocol='fold0', seen_patients=['7'], provenance=dict(version='1', seed=3), use_context=False
    )
    facts |= dict(checkpoint=str(folder / 'iter_3.pth'), encoding='raw', data=None, config='c.py')
    for path in (folder, folder / 'other', folder / 'test'):
        context = dict(facts, checkpoint=str(folder / 'ensemble.json')) if path.name == 'test' else dict(facts)
        if path == folder:
            context |= dict(
                folds=fold_scores({'fold0': alone, 'fold1': alone}),
                ensemble={**dict.fromkeys(('mIoU', 'mDice', 'aAcc'), 3.5)},
            )
        write_run(path, evaluation, context, samples=100)
        metrics = json.loads((path / 'metrics.json').read_text())
        for key in (
            'strata',
            'published',
            'worst_rois',
            'calibration',
        ):  # nothing reads them, so damage would not matter
            del metrics[key]
        (path / 'metrics.json').write_text(json.dumps(metrics))
    (folder / 'now' / 'vis_data').mkdir(parents=True)
    (folder / 'now' / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, SCALARS)))
    for number in range(3):
        (folder / f'{number}.pth').write_bytes(b'%d' % number)
    (folder / 'ensemble.json').write_text(
        json.dumps(dict(format=1, checkpoints=['0.pth', '1.pth', '2.pth'], patients=['1', 2]))
    )
    (folder / 'fold.json').write_text(
        json.dumps(dict(format=1, settings={'crops': '256', 'lr': '0.1'}, checkpoint='0.pth'))
    )
    (folder / 'groupings.json').write_text(json.dumps(GROUPINGS))
    return folder


def mutate(path, rng):
    """Replace a JSON file by a mutation."""
    path.write_bytes(mutated_json(json.loads(path.read_text()), rng))


def rewrite_metadata(path, rng):
    """Mutate the metadata in a file of counts."""
    with np.load(path) as data:
        arrays = dict(data)
    arrays['metadata'] = mutated_json(json.loads(str(arrays['metadata'])), rng).decode()
    np.savez_compressed(path, **arrays)


def damage(kind, folder, rng):
    """Damage one file of a copied work dir; return it."""
    names = dict(
        counts='confusion.npz',
        metadata='confusion.npz',
        tested='test/metrics.json',
        scalars='now/vis_data/scalars.json',
    )
    names |= dict(metrics='metrics.json', metrics_bytes='metrics.json', pooled='metrics.json')
    path = folder / names.get(kind, f'{kind}.json')
    if kind == 'metadata':
        rewrite_metadata(path, rng)
    elif kind == 'scalars' and rng.random() < 0.6:
        lines = path.read_bytes().splitlines()
        lines[1] = mutated_json(json.loads(lines[1]), rng)
        path.write_bytes(b'\n'.join(lines))
    elif kind in ('counts', 'metrics_bytes', 'scalars'):
        path.write_bytes(mutated_bytes(path.read_bytes(), rng))
    else:
        mutate(path, rng)
    return path


def use(kind, folder, out):
    """Read the damaged file as a user would."""
    if kind == 'ensemble':
        Ensemble.read(folder / 'ensemble.json')
    elif kind == 'fold':
        fold = object.__new__(Fold)  # reading fold.json requires neither a config nor data
        fold.folder, fold._settings = folder, {'crops': '256', 'lr': '0.1'}
        assert fold.checkpoint is None or fold.checkpoint.parent == folder
        fold.check_settings()
    elif kind == 'groupings':
        rescore(folder / 'other', out, read_groupings(folder / 'groupings.json'), samples=0, report=None)
    elif kind == 'pooled':
        if found := _pooled(folder, None):
            table(found)
    else:
        report = 'en' if kind in ('tested', 'scalars') or int(folder.parent.name) % 5 == 0 else None
        assert table(rescore(folder, out, samples=100 if kind == 'counts' else 0, report=report))
        if kind not in ('tested', 'scalars'):
            compare_runs(folder, folder / 'other', samples=100, allow_seen_patients=True)


@pytest.mark.parametrize('kind', [kind for kind in COUNTS if kind != 'labels'])
def test_mutated_files_work_or_end_in_one_sentence(work, tmp_path, kind):
    outcomes, faults = [], []
    for seed in range(COUNTS[kind]):
        folder = tmp_path / str(seed) / 'work'
        shutil.copytree(work, folder)
        path = damage(kind, folder, random.Random(f'{kind} {seed}'))
        is_ours(path)
        try:
            with without_figures():
                use(kind, folder, tmp_path / str(seed) / 'out')
            outcomes.append('works')
        except IgniteError as error:
            assert '\n' not in str(error) and len(str(error)) < 2000, (seed, error)
            outcomes.append('refused')
        except Exception as error:
            faults.append((seed, repr(error)[:300]))
        shutil.rmtree(tmp_path / str(seed))
    assert not faults
    assert (
        outcomes.count('refused') >= len(outcomes) // 10 or kind == 'scalars'
    )  # unreadable lines of a log are skipped


def test_mutated_label_files_work_or_end_in_one_sentence(prepared, tmp_path):
    index = read_index(prepared)
    names = index['splits']['official']['test']
    for name in names:
        Image.fromarray(np.where((ids := np.load(label_path(prepared, name))) < 16, ids + 1, 0)).save(
            tmp_path / f'{name}.png'
        )
    path = tmp_path / f'{names[0]}.png'
    content, outcomes = path.read_bytes(), []
    for seed in range(COUNTS['labels']):
        path.write_bytes(mutated_bytes(content, random.Random(seed)))
        try:
            score_folder(tmp_path, prepared, tmp_path / 'out', 'official', encoding='raw', samples=0, report=None)
        except IgniteError as error:
            assert path.name in str(error)
            outcomes.append('refused')
    assert len(outcomes) > COUNTS['labels'] // 2


def test_there_are_enough_mutations():
    assert sum(COUNTS.values()) >= 180
