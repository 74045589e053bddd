"""Random damage to what runs write: scores, folds, ensembles, logs, label files, checkpoints."""

import functools
import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from conftest import without_figures
from fuzz_cases import Changing, Damage, Kind, Sources, Use
from mutations import mutated_bytes, mutated_content, mutated_json
from PIL import Image

from mmseg_ignite.apis import compare_runs, rescore, score_folder
from mmseg_ignite.apis.cross_validation import _pooled
from mmseg_ignite.apis.fold_training import Fold
from mmseg_ignite.apis.scoring import read_groupings
from mmseg_ignite.datasets.prepared import label_path, read_index
from mmseg_ignite.engine import open_checkpoint
from mmseg_ignite.engine.checkpoints.writing import write_checkpoint
from mmseg_ignite.engine.ensembles import Ensemble
from mmseg_ignite.engine.work_dirs import find_checkpoint
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import Evaluation, write_run
from mmseg_ignite.evaluation.per_roi import fold_scores
from mmseg_ignite.evaluation.run import score_roi
from mmseg_ignite.evaluation.text_table import table
from mmseg_ignite.files import is_ours
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.visualization.curves import read_scalars

GROUPINGS = {
    'tumour': {'tumour': ['Tumor epithelium'], 'other': 'rest'},
    'two': {'a': ['Stroma'], 'b': ['Necrotic tissue', 'Macrophages']},
}
SCALARS = [{'loss': 1.5 / n, 'decode.dice': 0.5, 'lr': 1e-4, 'mIoU': 10.0 * n, 'step': n} for n in range(1, 4)]
UNREAD = ('strata', 'published', 'worst_rois', 'calibration')
"""Entries of metrics.json that nothing reads, so that damage would not matter."""
Change = Callable[[bytes, random.Random], bytes]


def scores() -> Evaluation:
    """Return the scores of six small ROIs with random labels."""
    rng, results = np.random.default_rng(3), []
    for number in range(6):
        truth = rng.choice([0, 1, 3, 255], (20, 24)).astype(np.uint8)
        prediction = np.where(rng.random(truth.shape) < 0.7, truth, 1).astype(np.uint8)
        prediction[:2] = 255
        metadata = dict(roi=f'roi{number}', patient=str(number // 2), um_per_px=0.5, organ=['lung', ''][number % 2])
        probabilities = rng.dirichlet(np.ones(16), truth.shape).transpose(2, 0, 1)
        results.append(score_roi(metadata, truth, prediction, 16, 1.5, probabilities))
    return Evaluation.collect(results, CLASSES, 1.5)


def write_work_dir(folder: Path) -> None:
    """Write the work dir of a cross-validation that was tested, as far as scoring reads it, and another run."""
    evaluation = scores()
    alone = evaluation.metrics(samples=0)
    facts = dict(
        split='val', protocol='fold0', seen_patients=['7'], provenance=dict(version='1', seed=3), use_context=False,
        checkpoint=str(folder / 'iter_3.pth'), encoding='raw', data=None, config='c.py',
    )  # fmt: skip
    pooled = dict(
        folds=fold_scores({'fold0': alone, 'fold1': alone}), ensemble=dict.fromkeys(('mIoU', 'mDice', 'aAcc'), 3.5)
    )
    tested = dict(checkpoint=str(folder / 'ensemble.json'))
    for path, more in ((folder, pooled), (folder / 'other', {}), (folder / 'test', tested)):
        write_run(path, evaluation, {**facts, **more}, samples=100)
        metrics = json.loads((path / 'metrics.json').read_text())
        (path / 'metrics.json').write_text(json.dumps({k: v for k, v in metrics.items() if k not in UNREAD}))
    (folder / 'now' / 'vis_data').mkdir(parents=True)
    (folder / 'now' / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, SCALARS)))
    for number in range(3):
        (folder / f'{number}.pth').write_bytes(b'%d' % number)
    ensemble = dict(format=1, checkpoints=['0.pth', '1.pth', '2.pth'], patients=['1', 2])
    fold = dict(format=1, settings={'crops': '256', 'lr': '0.1'}, checkpoint='0.pth')
    for name, content in dict(ensemble=ensemble, fold=fold, groupings=GROUPINGS).items():
        (folder / f'{name}.json').write_text(json.dumps(content))


def as_json(content: bytes, rng: random.Random) -> bytes:
    return mutated_json(json.loads(content), rng)


def a_line(content: bytes, rng: random.Random) -> bytes:
    """Mutate a line of a log, or any bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    lines = content.splitlines()
    lines[1] = as_json(lines[1], rng)
    return b'\n'.join(lines)


def run_file(
    name: str, mutation: Change, use: Callable[[Path, Path], object], sources: Sources, folder: Path
) -> tuple[Damage, Use]:
    """Damage a file of a work dir; ``use`` gets the work dir and a folder for results, which is empty."""
    work, change = folder / 'work', Changing()
    write_work_dir(work)

    def read() -> None:
        shutil.rmtree(folder / 'out', ignore_errors=True)
        is_ours(work / name)
        with without_figures():
            use(work, folder / 'out')

    return lambda rng: change(work / name, lambda old: mutation(old, rng)), read


def metadata(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Mutate the metadata inside a file of counts."""
    damage, use = run_file('confusion.npz', mutated_bytes, score(0), sources, folder)
    path = folder / 'work' / 'confusion.npz'
    with np.load(path) as data:
        arrays = dict(data)
    original = json.loads(str(arrays['metadata']))

    def rewrite(rng: random.Random) -> Path:
        np.savez_compressed(path, **{**arrays, 'metadata': mutated_json(original, rng).decode()})
        return path

    return rewrite, use


def score(samples: int, compares: bool = True, reports: int = 5) -> Callable[[Path, Path], None]:
    """Return a function that scores a work dir again, with a report every few times, and compares it with another run."""
    calls = itertools.count()

    def use(work: Path, out: Path) -> None:
        report = 'en' if next(calls) % reports == 0 else None
        assert table(rescore(work, out, samples=samples, report=report))
        if compares:
            compare_runs(work, work / 'other', samples=100, allow_seen_patients=True)

    return use


def read_log() -> Callable[[Path, Path], None]:
    """Return a function that reads the log, and every few times writes a report, whose curves show it."""
    calls = itertools.count()

    def use(work: Path, out: Path) -> None:
        read_scalars(work)
        if next(calls) % 4 == 0:
            rescore(work, out, samples=0, report='en')

    return use


def read_fold(work: Path, out: Path) -> None:
    fold = object.__new__(Fold)  # reading fold.json requires neither a config nor data
    fold.folder, fold._settings = work, {'crops': '256', 'lr': '0.1'}
    assert fold.checkpoint is None or fold.checkpoint.parent == work
    fold.check_settings()


def read_pooled(work: Path, out: Path) -> None:
    if found := _pooled(work, None):
        table(found)


def regroup(work: Path, out: Path) -> None:
    rescore(work / 'other', out, read_groupings(work / 'groupings.json'), samples=0, report=None)


def labels(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage a label image that another program wrote; the sentence names it."""
    names = read_index(sources.prepared)['splits']['official']['test']
    for name in names:
        ids = np.load(label_path(sources.prepared, name))
        Image.fromarray(np.where(ids < 16, ids + 1, 0)).save(folder / f'{name}.png')
    path, change = folder / f'{names[0]}.png', Changing()

    def use() -> None:
        try:
            score_folder(folder, sources.prepared, folder / 'out', 'official', encoding='raw', samples=0, report=None)
        except IgniteError as error:
            assert path.name in str(error)
            raise

    return lambda rng: change(path, lambda old: mutated_bytes(old, rng)), use


def checkpoint_content() -> dict:
    """Return a checkpoint with all parts of one that a training writes, but few weights."""
    generator = torch.Generator().manual_seed(1)
    weights = {f'layer{n}.weight': torch.randn(8, 4, generator=generator) for n in range(3)}
    moments = {n: dict(step=torch.tensor(3.0), exp_avg=w, exp_avg_sq=w**2) for n, w in enumerate(weights.values())}
    group = dict(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01, params=[0, 1, 2])
    history = dict(values=torch.rand(3, dtype=torch.float64), counts=torch.ones(3, dtype=torch.float64))
    state = dict(
        format=1, random=[dict(torch=torch.zeros(5056, dtype=torch.uint8), numpy=dict(position=3))], processes=1,
        history={'train/loss': history}, validation_pending=False, early_stopping=[], gradients={},
    )  # fmt: skip
    return dict(
        meta=dict(iter=3, epoch=0, cfg='a = 1', seed=7, dataset_meta=dict(classes=CLASSES, palette=[[1, 2, 3]])),
        state_dict=weights,
        message_hub=dict(log_scalars={}, runtime_info=dict(best_score=0.5), resumed_keys=dict(best_score=True)),
        optimizer=dict(state=moments, param_groups=[group]),
        param_schedulers=[dict(base_values=[1e-4], last_step=3, begin=0, end=7)],
        mmseg_ignite=state,
    )


def checkpoint(foreign: bool, mutated: bool, sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage a checkpoint: its bytes, or its content, which gets a valid checksum.

    Args:
        foreign: write it with torch.save only, without our checksum, half of the time in torch's older format.
        mutated: change the content in place of the bytes.
    """
    path = folder / 'iter_3.pth'

    def damage(rng: random.Random) -> Path:
        content = mutated_content(checkpoint_content(), rng) if mutated else checkpoint_content()
        if foreign:
            torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.5)
        else:
            write_checkpoint(content, path)
        if not mutated:
            path.write_bytes(mutated_bytes(path.read_bytes(), rng))
        return path

    return damage, lambda: open_checkpoint(path)


POINTERS = ('', '../../etc/passwd', '/', '.', '..', 'a\0b', 'x' * 6000, '\udcff', 'sub/../model.pth', 'model.pth\n\n')


def pointer(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage ``last_checkpoint``; whatever it says, the checkpoint is one of the work dir."""
    work = folder / 'work'
    work.mkdir()
    (work / 'model.pth').write_bytes(b'weights')
    (folder / 'other.pth').write_bytes(b'of somebody else')

    def damage(rng: random.Random) -> Path:
        text = rng.choice(POINTERS).encode('utf-8', 'surrogateescape')
        path = rng.choice((f'{work}/model.pth', '../other.pth', f'{folder}/other.pth')).encode()
        (work / 'last_checkpoint').write_bytes(text if rng.random() < 0.3 else mutated_bytes(path, rng))
        return work / 'last_checkpoint'

    def use() -> None:
        assert find_checkpoint(work).parent == work

    return damage, use


def _kind(quick: int, refused: float, make: Callable, *arguments: object) -> Kind:
    return Kind(functools.partial(make, *arguments), quick, refused)


KINDS = {
    'confusion.npz': _kind(45, 0.1, run_file, 'confusion.npz', mutated_bytes, score(100)),
    'metadata': _kind(30, 0.1, metadata),
    'metrics.json': _kind(50, 0.1, run_file, 'metrics.json', as_json, score(0, reports=10)),
    'metrics.json, bytes': _kind(10, 0.1, run_file, 'metrics.json', mutated_bytes, score(0)),
    'metrics.json of a test': _kind(10, 0.1, run_file, 'test/metrics.json', as_json, score(0, False, 3)),
    'metrics.json of folds': _kind(20, 0.1, run_file, 'metrics.json', as_json, read_pooled),
    'ensemble.json': _kind(
        40, 0.1, run_file, 'ensemble.json', as_json, lambda work, out: Ensemble.read(work / 'ensemble.json')
    ),
    'fold.json': _kind(20, 0.1, run_file, 'fold.json', as_json, read_fold),
    'groupings': _kind(40, 0.1, run_file, 'groupings.json', as_json, regroup),
    'scalars.json': _kind(15, 0.0, run_file, 'now/vis_data/scalars.json', a_line, read_log()),
    'label images': _kind(25, 0.5, labels),
    'checkpoint': _kind(30, 0.5, checkpoint, False, False),
    'checkpoint, content': _kind(30, 0.1, checkpoint, False, True),
    'checkpoint of others': _kind(20, 0.3, checkpoint, True, False),
    'checkpoint of others, content': _kind(20, 0.0, checkpoint, True, True),
    'last_checkpoint': _kind(40, 0.3, pointer),
}
