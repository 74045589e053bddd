"""tools/cross_validate.py as a user runs it: all folds, single folds, interrupted folds and the resulting ensemble."""

import json
import shutil

import numpy as np
import pytest
from conftest import DEMO_CONFIG, cfg_options, single_error, tool
from PIL import Image

from mmseg_ignite.apis import cross_validate, load_config
from mmseg_ignite.apis.publishing import ensemble_scores
from mmseg_ignite.datasets.prepared import FOLDS, image_path, label_path, read_index
from mmseg_ignite.engine.ensembles import Ensemble
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import Evaluation

pytestmark = pytest.mark.usefixtures('one_thread', 'no_figures')


@pytest.fixture(autouse=True)
def no_array_job(monkeypatch):
    """These tests may themselves run in a Slurm array job."""
    monkeypatch.delenv('SLURM_ARRAY_TASK_ID', raising=False)


def options(prepared, *more):
    return cfg_options(
        prepared, 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=1', 'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.save_best=None', 'custom_hooks=[]', 'test_evaluator.calibration=True',
        'model.test_cfg.keep_logits=True', *more,
    )  # fmt: skip


def stamps(folder):
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}


def steps(fold):
    """Return the iterations whose loss is in the logs of a fold."""
    lines = [x for p in sorted(fold.glob('*/vis_data/scalars.json')) for x in p.read_text().splitlines()]
    return [json.loads(x)['step'] for x in lines if '"loss"' in x]


@pytest.fixture(scope='module')
def done(prepared, tmp_path_factory):
    """A finished cross-validation: one call for all folds except fold 1, then an array task for fold 1."""
    folder = tmp_path_factory.mktemp('folds')
    arguments = ['cross_validate', DEMO_CONFIG, '--work-dir', folder]
    assert tool(*arguments, '--no-report', '--fold', 4, 0, 3, 2, 0, *options(prepared)) == 0
    assert not (folder / 'ensemble.json').exists() and not (folder / 'fold1').exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SLURM_ARRAY_TASK_ID', '1')
        assert tool(*arguments, *options(prepared)) == 0
    return folder


def test_each_roi_outside_the_test_part_is_scored_once(prepared, done):
    splits, pooled = read_index(prepared)['splits'], Evaluation.load(done)
    parts = [Evaluation.load(done / fold) for fold in FOLDS]
    for fold, part in zip(FOLDS, parts):
        assert sorted(part.names) == sorted(splits[fold]['val'])
    everything = {roi['name'] for roi in read_index(prepared)['rois']}
    assert sorted(pooled.names) == sorted(everything - set(splits['fold0']['test']))
    np.testing.assert_array_equal(pooled.matrices.sum(0), sum(part.matrices.sum(0) for part in parts))
    np.testing.assert_allclose(pooled.confidence.sum(0), sum(part.confidence.sum(0) for part in parts))
    for part in parts:
        for name, matrix, metadata in zip(part.names, part.matrices, part.metadata):
            index = pooled.names.index(name)
            np.testing.assert_array_equal(pooled.matrices[index], matrix)
            assert pooled.metadata[index] == metadata


def test_each_fold_trains_on_its_own_part_and_scores_its_last_checkpoint(done):
    for fold in FOLDS:
        metrics = json.loads((done / fold / 'metrics.json').read_text())
        assert (metrics['split'], metrics['protocol']) == ('val', fold)
        assert metrics['checkpoint'] == str(done / fold / 'iter_2.pth')
        assert json.loads((done / fold / 'fold.json').read_text())['checkpoint'] == 'iter_2.pth'
        (config,) = done.glob(f'{fold}/*.py')
        cfg = load_config(config)
        assert cfg.train_dataloader.dataset.protocol == cfg.val_dataloader.dataset.protocol == fold
        assert cfg.train_dataloader.dataset.split == 'train'
        assert steps(done / fold) == [1, 2]  # nothing of another fold
    assert len({p.read_bytes() for p in done.glob('fold*/iter_2.pth')}) == len(FOLDS)


def test_pooled_run_has_all_predictions(prepared, done):
    metrics = json.loads((done / 'metrics.json').read_text())
    report = (done / 'report.html').read_text(encoding='utf-8')
    assert report.count('<article class="region"') == metrics['rois'] == len(list((done / 'predictions').iterdir()))
    assert 'checkpoint' not in metrics and metrics['protocol'] == 'fold0, fold1, fold2, fold3, fold4'
    assert metrics['intervals']['patients'] == 5 and metrics['data'] == str(prepared)
    matrix = np.zeros((16, 16), np.int64)
    for path in (done / 'predictions').iterdir():
        truth, raw = np.load(label_path(prepared, path.stem)).astype(int), np.array(Image.open(path)).astype(int)
        np.add.at(matrix, (truth[truth < 255], raw[truth < 255] - 1), 1)
    np.testing.assert_array_equal(matrix, Evaluation.load(done).matrices.sum(0))
    assert not (done / 'fold0' / 'report.html').exists() and (done / 'fold1' / 'report.html').is_file()
    assert not list(done.rglob('.*'))


def test_table_of_folds_includes_the_tested_ensemble(prepared, done, tmp_path):
    metrics = json.loads((done / 'metrics.json').read_text())
    alone = {fold: json.loads((done / fold / 'metrics.json').read_text()) for fold in FOLDS}
    assert [row['fold'] for row in metrics['folds']['rows']] == list(FOLDS) and 'ensemble' not in metrics
    for key in ('mIoU', 'mDice', 'aAcc'):
        values = [alone[fold][key] for fold in FOLDS]
        assert [row[key] for row in metrics['folds']['rows']] == values
        assert metrics['folds']['mean'][key] == pytest.approx(np.mean(values))
        assert metrics['folds']['sd'][key] == pytest.approx(np.std(values, ddof=1))
    assert 'id="folds"' in (done / 'report.html').read_text(encoding='utf-8')
    shutil.copytree(done, tmp_path / 'd')
    tested = dict(alone['fold0'], checkpoint='elsewhere/ensemble.json', mIoU=12.5, split='test')
    (tmp_path / 'd' / 'test').mkdir()
    for how in ('repeat', 'rescore'):
        (tmp_path / 'd' / 'test' / 'metrics.json').write_text(json.dumps(tested))
        if how == 'repeat':
            arguments = ['cross_validate', DEMO_CONFIG, '--work-dir', tmp_path / 'd', '--no-report', *options(prepared)]
        else:
            arguments = ['evaluate', '--from', tmp_path / 'd', '--no-report', '--samples', 0]
        assert tool(*arguments) == 0
        found = json.loads((tmp_path / 'd' / 'metrics.json').read_text())
        assert found['folds'] == metrics['folds'] and found['ensemble']['mIoU'] == tested['mIoU']
        tested['mIoU'] = 25.0
    assert 'ensemble, test part' in (tmp_path / 'd' / 'tables' / 'folds.csv').read_text()
    tested['checkpoint'] = 'fold0/iter_2.pth'  # a test of something else than the ensemble
    (tmp_path / 'd' / 'test' / 'metrics.json').write_text(json.dumps(tested))
    assert ensemble_scores(tmp_path / 'd') is None


def test_repeated_call_skips_finished_folds(prepared, done, capsys):
    before = stamps(done)
    assert tool('cross_validate', DEMO_CONFIG, '--work-dir', done, *options(prepared)) == 0
    output = capsys.readouterr().out
    assert stamps(done) == before
    assert output.count('already finished, skipped') == 5 and 'training in' not in output
    assert (
        f'tools/test.py {DEMO_CONFIG} {done}/ensemble.json' in output
        and 'protocol=fold0' in output
        and 'mIoU' in output
    )


def test_simultaneous_finishes_write_the_same_files(prepared, done, tmp_path):
    """The second process replaces the files of the first with identical ones."""
    shutil.copytree(done, tmp_path / 'd')
    before = {name: (tmp_path / 'd' / name).read_bytes() for name in ('ensemble.json', 'per_roi.csv', 'metrics.txt')}
    (tmp_path / 'd' / 'ensemble.json').unlink()
    assert tool('cross_validate', DEMO_CONFIG, '--work-dir', tmp_path / 'd', '--fold', 0, *options(prepared)) == 0
    assert {name: (tmp_path / 'd' / name).read_bytes() for name in before} == before
    assert {p.name for p in (tmp_path / 'd').iterdir()} == {p.name for p in done.iterdir()}


def test_ensemble_is_not_tested_on_its_training_patients(prepared, done, tmp_path, capfd):
    arguments = [DEMO_CONFIG, done / 'ensemble.json', '--work-dir', tmp_path / 'w']
    assert tool('test', *arguments, *options(prepared, 'protocol=fold0', 'test_dataloader.dataset.split=val')) == 2
    assert 'trained or validated on' in capfd.readouterr().err and not (tmp_path / 'w' / 'metrics.json').exists()


def test_the_ensemble_is_tested_and_predicts(prepared, done, tmp_path):
    members = Ensemble.read(done / 'ensemble.json').members
    assert list(members) == [done / fold / 'iter_2.pth' for fold in FOLDS]
    arguments = [DEMO_CONFIG, done / 'ensemble.json', '--work-dir', tmp_path / 'w']
    assert tool('test', *arguments, *options(prepared, 'protocol=fold0')) == 0
    metrics = json.loads((tmp_path / 'w' / 'metrics.json').read_text())
    assert metrics['checkpoint'] == str(done / 'ensemble.json') and metrics['split'] == 'test'
    assert (tmp_path / 'w' / 'report.html').is_file()
    name = read_index(prepared)['splits']['fold0']['test'][0]
    Image.fromarray(np.load(image_path(prepared, name))).save(tmp_path / f'{name}.png')
    arguments = [
        DEMO_CONFIG,
        done / 'ensemble.json',
        tmp_path / f'{name}.png',
        '--out',
        tmp_path / 'o',
        '--min-area',
        0,
    ]
    assert tool('predict', *arguments) == 0
    a, b = (np.array(Image.open(tmp_path / f / f'{name}.png')) for f in ('o', 'w/predictions'))
    np.testing.assert_array_equal(a, b)


@pytest.fixture
def interrupted(done, tmp_path):
    """Fold 0 as left by a training stopped after the first iteration; the other folds do not exist."""
    fold = tmp_path / 'interrupted' / 'fold0'
    shutil.copytree(done / 'fold0', fold)
    for path in (*fold.glob('2*'), fold / 'predictions'):
        shutil.rmtree(path)
    shutil.rmtree(fold / 'tables')
    for name in ('metrics.json', 'metrics.txt', 'per_roi.csv', 'confusion.npz', 'iter_2.pth'):
        (fold / name).unlink()
    record = json.loads((fold / 'fold.json').read_text())
    del record['checkpoint']
    (fold / 'fold.json').write_text(json.dumps(record))
    (fold / 'last_checkpoint').write_text(str(fold / 'iter_1.pth'))
    return tmp_path / 'interrupted'


def test_interrupted_fold_continues_with_resume(prepared, interrupted, capsys):
    arguments = [DEMO_CONFIG, '--work-dir', interrupted, '--no-report', '--fold', 0]
    before = stamps(interrupted)
    assert tool('cross_validate', *arguments, *options(prepared)) == 2
    assert '--resume' in capsys.readouterr().err and stamps(interrupted) == before
    assert tool('cross_validate', *arguments, '--resume', *options(prepared)) == 0
    output = capsys.readouterr().out
    assert 'fold 0 of 0 to 4: training' in output and 'folds 1, 2, 3, 4 are not finished' in output
    assert (interrupted / 'fold0' / 'metrics.json').is_file() and not (interrupted / 'ensemble.json').exists()
    assert steps(interrupted / 'fold0') == [2] and (interrupted / 'fold0' / 'iter_2.pth').is_file()


def test_trained_fold_is_only_scored(prepared, done, tmp_path, capsys):
    """A fold stopped during scoring needs no --resume and is not trained again."""
    shutil.copytree(done / 'fold3', tmp_path / 'fold3')
    (tmp_path / 'fold3' / 'metrics.json').unlink()
    checkpoint = (tmp_path / 'fold3' / 'iter_2.pth').stat().st_mtime_ns
    arguments = [DEMO_CONFIG, '--work-dir', tmp_path, '--no-report', '--fold', 3]
    assert tool('cross_validate', *arguments, *options(prepared)) == 0
    assert 'training in' not in capsys.readouterr().out
    assert (tmp_path / 'fold3' / 'iter_2.pth').stat().st_mtime_ns == checkpoint
    assert Evaluation.load(tmp_path / 'fold3').names == Evaluation.load(done / 'fold3').names


def test_data_path_and_workers_may_change(prepared, done, tmp_path, capsys):
    shutil.copytree(prepared, tmp_path / 'ignite')
    more = ('train_dataloader.num_workers=1', 'train_dataloader.persistent_workers=True')
    arguments = [DEMO_CONFIG, '--work-dir', done, '--no-report', '--fold', 2, *options(tmp_path / 'ignite', *more)]
    assert tool('cross_validate', *arguments) == 0
    assert 'fold 2 of 0 to 4: already finished, skipped' in capsys.readouterr().out


def invalid_calls(prepared, done, tmp_path):
    """Return invalid arguments, each with words of the expected message."""
    three = tmp_path / 'three'
    shutil.copytree(prepared, three)
    index = json.loads((three / 'index.json').read_text())
    for fold in FOLDS:
        del index['splits'][fold]
    (three / 'index.json').write_text(json.dumps(index))
    (tmp_path / 'file').write_text('')
    (tmp_path / 'foreign' / 'fold2').mkdir(parents=True)
    (tmp_path / 'foreign' / 'fold2' / 'last_checkpoint').write_text('iter_2.pth')
    (tmp_path / 'broken' / 'fold2').mkdir(parents=True)
    (tmp_path / 'broken' / 'fold2' / 'fold.json').write_text('{')
    good, new = options(prepared), ['--work-dir', tmp_path / 'new']
    return [
        ([*new, '--folds', 3, *good], ['--folds is 3', 'fold0 to fold4', '--fold']),
        ([*new, '--fold', 5, *good], ['--fold is 5', '0 to 4']),
        ([*new, '--fold', 0, -1, *good], ['--fold is -1']),
        ([*new, *options(prepared, 'protocol=official')], ['protocol', 'official']),
        ([*new, *options(three)], ['no folds', 'five patients']),
        ([*new, *options('no/such/data')], ['no/such/data']),
        ([*new, *(o for o in options(prepared, 'test_evaluator.type=IoUMetric') if 'calibration' not in str(o))],
         ['TissueMetric']),
        ([*new, *options(prepared, 'train_dataloader.dataset.split=val')], ['train_dataloader.dataset.split', "'val'"]),
        ([*new, *options(prepared, 'val_dataloader.dataset.type=BaseSegDataset')], ['val_dataloader', 'IGNITEDataset']),
        (['--work-dir', tmp_path / 'file', *good], ['is a file']),
        (['--work-dir', tmp_path / 'foreign', '--fold', 0, *good], ['fold2', 'not a fold of a cross-validation']),
        (['--work-dir', tmp_path / 'broken', *good], ['fold.json', 'is not valid JSON']),
        (['--work-dir', done, *options(prepared, 'optim_wrapper.optimizer.lr=0.5')],
         ['fold0', 'optim_wrapper.optimizer.lr = 0.001', '0.5']),
        (['--work-dir', done, '--amp', *good], ['--amp = False', 'True']),
        (['--work-dir', done, '--minutes', '3', *good], ['--minutes = None', '3.0']),
    ]  # fmt: skip


@pytest.mark.parametrize('number', range(15))
def test_invalid_call_prints_one_error_and_returns_2(prepared, done, tmp_path, capsys, number):
    calls = invalid_calls(prepared, done, tmp_path)
    assert len(calls) == 15
    arguments, words = calls[number]
    before = stamps(done)
    assert tool('cross_validate', DEMO_CONFIG, *arguments) == 2
    error = single_error(capsys)
    assert all(word in error for word in words), error
    assert stamps(done) == before and not list((tmp_path / 'new').glob('**/*.pth'))


def test_pipeline_without_patients_is_refused_before_training(prepared, tmp_path):
    (tmp_path / 'c.py').write_text(
        f"_base_ = ['{DEMO_CONFIG}']\ntest_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadIGNITERegion'), "
        "dict(type='PackSegInputs')]))\n"
    )
    with pytest.raises(IgniteError, match='drops roi and patient'):
        cross_validate(tmp_path / 'c.py', str(tmp_path / 'w'), dict(data_root=str(prepared)))
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('task', ['5', '-1', 'x', ''])
def test_invalid_array_task_is_refused(prepared, tmp_path, monkeypatch, task):
    monkeypatch.setenv('SLURM_ARRAY_TASK_ID', task)
    with pytest.raises(IgniteError, match='SLURM_ARRAY_TASK_ID is .*--array=0-4'):
        cross_validate(DEMO_CONFIG, str(tmp_path), dict(data_root=str(prepared)))
