"""Work dirs that are moved, copied or used twice, and checkpoints that record their training patients."""

import json
import shutil

import pytest
import torch
from conftest import DEMO_CONFIG, small_config, small_options

from mmseg_ignite.apis import compare_runs, load_config, score_folder, train
from mmseg_ignite.apis import test as run_test
from mmseg_ignite.datasets.prepared import read_index
from mmseg_ignite.engine import open_checkpoint
from mmseg_ignite.engine.checkpoints.writing import write_checkpoint
from mmseg_ignite.engine.training_record import TrainingRecord
from mmseg_ignite.engine.work_dirs import latest_checkpoint
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.provenance import file_sha256

pytestmark = pytest.mark.usefixtures('one_thread')


def config(prepared, work_dir, **options):
    return small_config(prepared, work_dir, **{'train_cfg.val_interval': 2, **options})


@pytest.fixture(scope='module')
def trained(prepared, tmp_path_factory):
    """A run of two iterations with the official split; tests must not change it."""
    work_dir = tmp_path_factory.mktemp('run') / 'a'
    train(config(prepared, work_dir, pictures=True, protocol='official'))
    return work_dir


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_resumed_copy_leaves_the_original_unchanged(prepared, trained, tmp_path):
    """A better score in the copy replaces the best checkpoint in the copy only."""
    shutil.copytree(trained, tmp_path / 'b')
    copied = tmp_path / 'b' / 'iter_2.pth'
    state = open_checkpoint(copied)
    state['message_hub']['runtime_info']['best_score'] = -1.0
    write_checkpoint(state, copied)
    before = content(trained)
    train(config(prepared, tmp_path / 'b', protocol='official', **{'train_cfg.max_iters': 4}), resume=True)
    assert content(trained) == before
    assert (tmp_path / 'b' / 'iter_4.pth').is_file() and latest_checkpoint(tmp_path / 'b').name == 'iter_4.pth'
    assert [path.name for path in (tmp_path / 'b').glob('best_*.pth')] == ['best_mIoU_iter_4.pth']


def test_moved_run_resumes(prepared, trained, tmp_path):
    shutil.copytree(trained, tmp_path / 'old')
    pointer = tmp_path / 'old' / 'last_checkpoint'
    pointer.write_text(str(tmp_path / 'old' / 'iter_2.pth'))
    (tmp_path / 'old').rename(tmp_path / 'new')
    assert latest_checkpoint(tmp_path / 'new') == tmp_path / 'new' / 'iter_2.pth'
    runner = train(config(prepared, tmp_path / 'new', protocol='official', **{'train_cfg.max_iters': 3}), resume=True)
    assert runner.iter == 3 and not (tmp_path / 'old').exists()


def test_checkpoints_contain_no_folder_names(trained):
    for path in trained.glob('*.pth'):
        state = open_checkpoint(path)
        paths = {k: v for k, v in state['message_hub']['runtime_info'].items() if 'ckpt' in k and k != 'keep_ckpt_ids'}
        assert paths and all('/' not in str(value) for value in paths.values())


def test_latest_checkpoint_without_a_valid_pointer(tmp_path):
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / 'none') is None
    for name in ('iter_9.pth', 'iter_10.pth', 'best_mIoU_iter_99.pth', 'encoder_weights.pth'):
        (tmp_path / name).write_bytes(b'')
    assert latest_checkpoint(tmp_path).name == 'iter_10.pth'
    for name in ('elsewhere/iter_9.pth\n', '/elsewhere/iter_7.pth'):  # a run was killed before it wrote the pointer
        (tmp_path / 'last_checkpoint').write_text(name)
        assert latest_checkpoint(tmp_path).name == 'iter_10.pth'
    (tmp_path / 'iter_9.pth').unlink()
    (tmp_path / 'iter_10.pth').rename(tmp_path / 'mine.pth')
    (tmp_path / 'last_checkpoint').write_text('elsewhere/mine.pth\n')
    assert latest_checkpoint(tmp_path).name == 'mine.pth'


def test_used_work_dir_is_refused_or_replaced(prepared, trained, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(trained, run)
    (run / 'notes.txt').write_text('mine')
    (run / 'metrics.json').write_text('{"schema_version": 1, "mIoU": 9.0}')
    (run / 'report.html').write_text('not ours')
    before = content(run)
    with pytest.raises(IgniteError, match='--resume.*--overwrite'):
        train(config(prepared, run))
    with pytest.raises(IgniteError, match='no.pth'):
        train(config(prepared, run), weights='no.pth', overwrite=True)
    assert content(run) == before
    train(config(prepared, run, **{'train_cfg.max_iters': 1}), overwrite=True)
    assert {path.name for path in run.glob('*.pth')} == {'iter_1.pth', 'best_mIoU_iter_1.pth'}
    assert (run / 'notes.txt').read_text() == 'mine' and not (run / 'metrics.json').exists()
    assert (run / 'report.html').read_text() == 'not ours'
    assert len(list(run.glob('*/vis_data/scalars.json'))) == 1
    with pytest.raises(IgniteError, match='choose one of them'):
        train(config(prepared, run), resume=True, overwrite=True)


def test_logs_of_an_aborted_run_are_moved(prepared, tmp_path):
    old = tmp_path / '20250101_000000' / 'vis_data'
    old.mkdir(parents=True)
    (old / 'scalars.json').write_text('{"loss": 9.0, "step": 77}\n')
    train(config(prepared, tmp_path))
    assert (tmp_path / 'aborted' / '20250101_000000' / 'vis_data' / 'scalars.json').is_file()
    assert len(list(tmp_path.glob('*/vis_data/scalars.json'))) == 1


def test_damaged_latest_checkpoint_is_kept_aside_and_reported(prepared, trained, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(trained, run)
    (run / 'iter_9.pth').write_bytes((run / 'iter_2.pth').read_bytes()[:5000])
    (run / 'last_checkpoint').write_text('iter_9.pth')
    with pytest.warns(UserWarning, match='iter_9.pth cannot be read.*It is kept as iter_9.pth.damaged'):
        runner = train(config(prepared, run, protocol='official', **{'train_cfg.max_iters': 3}), resume=True)
    assert runner.iter == 3 and (run / 'iter_9.pth.damaged').is_file()


def patients(prepared, protocol, *parts):
    index = read_index(prepared)
    names = {name for part in parts for name in index['splits'][protocol][part]}
    return sorted({str(roi['patient']) for roi in index['rois'] if roi['name'] in names})


def test_checkpoint_records_its_patients_and_data(prepared, trained):
    index = read_index(prepared)
    for path in trained.glob('*.pth'):
        record = TrainingRecord.of_meta(open_checkpoint(path)['meta'])
        assert record.train_patients == patients(prepared, 'official', 'train')
        assert record.val_patients == patients(prepared, 'official', 'val')
        assert record.data_sha256 == file_sha256(prepared / 'index.json')
        assert record.um_per_px == pytest.approx(index['rois'][0]['um_per_px'], rel=0.1)


def test_test_on_seen_patients_is_refused(prepared, trained, tmp_path):
    """The model was trained with the official split and is tested with another one."""
    other = next(
        f'fold{k}' for k in range(5) if patients(prepared, f'fold{k}', 'val') != patients(prepared, 'official', 'val')
    )
    options = {'protocol': other, 'test_dataloader.dataset.split': 'val'}
    seen = sorted(set(patients(prepared, other, 'val')) & set(patients(prepared, 'official', 'train', 'val')))
    with pytest.raises(IgniteError, match=f'{len(seen)} of the .* patients to be scored.*--allow-seen-patients'):
        run_test(config(prepared, tmp_path / 'w', **options), trained / 'iter_2.pth')
    assert not (tmp_path / 'w' / 'metrics.json').exists()
    result = run_test(config(prepared, tmp_path / 'w', **options), trained, allow_seen_patients=True, report=None)
    assert result['seen_patients'] == seen and result['provenance']['checkpoint_sha256'] == file_sha256(
        trained / 'iter_2.pth'
    )
    with pytest.raises(IgniteError, match='would favour it.*--allow-seen-patients'):
        compare_runs(tmp_path / 'w', tmp_path / 'w')
    assert compare_runs(tmp_path / 'w', tmp_path / 'w', allow_seen_patients=True)['rois'] == result['rois']
    arguments = (tmp_path / 'w' / 'predictions', prepared, tmp_path / 'e', other, 'val', 'raw')
    with pytest.raises(IgniteError, match='patients to be scored'):
        score_folder(*arguments, checkpoint=trained / 'iter_2.pth')
    for checkpoint in (trained / 'iter_2.pth', trained):  # of a work dir, its latest
        score_folder(*arguments, checkpoint=checkpoint, allow_seen_patients=True, report=None)
        scored = json.loads((tmp_path / 'e' / 'metrics.json').read_text())
        assert scored['seen_patients'] == seen and scored['checkpoint'] == str(trained / 'iter_2.pth')
        assert scored['provenance']['checkpoint_sha256'] == file_sha256(trained / 'iter_2.pth')
    for missing in (tmp_path / 'none.pth', tmp_path / 'e', tmp_path / 'none.json'):
        with pytest.raises(IgniteError, match=missing.name):
            score_folder(*arguments, checkpoint=missing)


def test_test_on_unseen_patients_records_its_provenance(prepared, trained, tmp_path):
    result = run_test(config(prepared, tmp_path, protocol='official'), trained / 'iter_2.pth', report=None)
    assert 'seen_patients' not in result
    assert result['provenance']['data_sha256'] == file_sha256(prepared / 'index.json')
    assert {'version', 'date', 'command', 'config_sha256', 'checkpoint_sha256', 'seed'} <= result['provenance'].keys()


@pytest.mark.parametrize('how', ['resume', 'load_from', 'weights'])
def test_patients_of_an_earlier_training_are_kept(prepared, trained, tmp_path, how):
    """The run is resumed with another split, fine-tuned, or uses the encoder of the earlier one."""
    shutil.copytree(trained, tmp_path / 'w')
    options, arguments = {'protocol': 'fold0', 'train_cfg.max_iters': 3}, {}
    if how == 'resume':
        arguments['resume'] = True
    elif how == 'load_from':
        options['load_from'] = str(trained / 'iter_2.pth')
    else:
        arguments['weights'] = str(trained / 'iter_2.pth')
    runner = train(config(prepared, tmp_path / 'w', **options), overwrite=how != 'resume', **arguments)
    record = TrainingRecord.of_meta(open_checkpoint(tmp_path / 'w' / 'iter_3.pth')['meta'])
    both = {*patients(prepared, 'official', 'train'), *patients(prepared, 'fold0', 'train')}
    assert record.train_patients == sorted(both) and runner.iter == 3


def test_encoder_of_a_segmentor_is_loaded(prepared, trained, tmp_path):
    """With a learning rate of 0 the encoder equals the keys of the file that start with backbone."""
    path = str(trained / 'iter_2.pth')
    runner = train(config(prepared, tmp_path, **{'optim_wrapper.optimizer.lr': 0.0}), weights=path)
    expected = open_checkpoint(path)['state_dict']
    found = runner.model.state_dict()
    assert all(torch.equal(found[k], expected[k]) for k in expected if k.startswith('backbone.'))


def test_checkpoint_without_a_record_gives_a_warning(prepared, trained, tmp_path):
    state = open_checkpoint(trained / 'iter_2.pth')
    torch.save(dict(state_dict=state['state_dict']), tmp_path / 'bare.pth')
    with pytest.warns(UserWarning, match='does not state its training patients'):
        run_test(config(prepared, tmp_path / 'w'), tmp_path / 'bare.pth', report=None)


@pytest.mark.parametrize('fault', ['weights', 'load_from', 'layers'])
def test_training_that_cannot_start_replaces_nothing(prepared, trained, tmp_path, fault):
    """The weights to start from would be replaced, or the model cannot be built."""
    run = tmp_path / 'run'
    shutil.copytree(trained, run)
    before, options, arguments = content(run), {}, {}
    if fault == 'weights':
        arguments['weights'] = str(run / 'iter_2.pth')
    elif fault == 'load_from':
        options['load_from'] = str(run / 'iter_2.pth')
    else:
        options['model.backbone.num_layers'] = (2, 2)
    with pytest.raises(IgniteError, match='copy it elsewhere first|cannot be built'):
        train(config(prepared, run, **options), overwrite=True, **arguments)
    after = content(run)
    assert {path: after.get(path) for path in before} == before
    assert not (run / '.replaced').exists()


def test_training_that_cannot_start_leaves_no_new_folder(prepared, tmp_path):
    with pytest.raises(IgniteError, match='none.pth'):
        train(config(prepared, tmp_path / 'new'), weights=str(tmp_path / 'none.pth'))
    assert not (tmp_path / 'new').exists()


def test_foreign_files_in_a_work_dir_are_kept(prepared, tmp_path):
    run = tmp_path / 'run'
    for name in ('progress/thesis.txt', '20200101_000000/photo.jpg', 'best_mIoU_of_mine.pth', 'aborted/notes.txt'):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b'mine')
    mine = content(run)
    for name in ('curves.png', 'last_checkpoint'):
        (run / name).write_bytes(b'mine')
        with pytest.raises(IgniteError, match=name):
            train(config(prepared, run, pictures=True))
        assert content(run)[next(p for p in content(run) if p.name == name)] == b'mine'
        (run / name).unlink()
    for overwrite in (False, True):
        train(config(prepared, run, pictures=True, **{'train_cfg.max_iters': 1}), overwrite=overwrite)
        assert {path: content(run).get(path) for path in mine} == mine


def test_user_config_in_the_work_dir_is_kept(prepared, tmp_path):
    own = tmp_path / 'my.py'
    own.write_text(f'# mine\n_base_ = {str(DEMO_CONFIG)!r}\n')
    options = small_options(prepared, iterations=1)
    train(load_config(own, options, str(tmp_path)))
    assert own.read_text().startswith('# mine') and len(list(tmp_path.glob('my_*.py'))) == 1
    train(load_config(own, options, str(tmp_path / 'w')))
    train(load_config(own, options, str(tmp_path / 'w')), overwrite=True)
    assert [path.name for path in (tmp_path / 'w').glob('*.py')] == ['my.py']


def test_fine_tuned_run_resumes_from_its_own_checkpoint(prepared, trained, tmp_path):
    options = dict(load_from=str(trained / 'iter_2.pth'), protocol='official')
    train(config(prepared, tmp_path, **options))
    runner = train(config(prepared, tmp_path, **options, **{'train_cfg.max_iters': 3}), resume=True)
    assert runner.iter == 3
    for path in tmp_path.glob('iter_*.pth'):
        path.unlink()
    with pytest.raises(IgniteError, match=r'best_mIoU_iter_\d.pth, from which no training can be resumed'):
        train(config(prepared, tmp_path, protocol='official'), resume=True)


def test_pretrained_weights_of_any_module_add_their_patients(prepared, trained, tmp_path):
    options = {'model.init_cfg': dict(type='Pretrained', checkpoint=str(trained / 'iter_2.pth')), 'protocol': 'fold0'}
    train(config(prepared, tmp_path, **options))
    record = TrainingRecord.of_meta(open_checkpoint(tmp_path / 'iter_2.pth')['meta'])
    both = {*patients(prepared, 'official', 'train'), *patients(prepared, 'fold0', 'train')}
    assert set(record.train_patients) >= both


def test_ensemble_member_without_a_record_gives_a_warning(prepared, trained, tmp_path):
    shutil.copy(trained / 'iter_2.pth', tmp_path / 'a.pth')
    torch.save(dict(state_dict=open_checkpoint(trained / 'iter_2.pth')['state_dict']), tmp_path / 'b.pth')
    (tmp_path / 'e.json').write_text('{"format": 1, "checkpoints": ["a.pth", "b.pth"]}')
    with pytest.warns(UserWarning, match='1 of the 2 members'):
        run_test(config(prepared, tmp_path / 'w', protocol='official'), tmp_path / 'e.json', report=None)


def test_work_dir_that_is_not_utf8_is_refused(prepared, tmp_path):
    with pytest.raises(IgniteError, match='not UTF-8'):
        train(config(prepared, f'{tmp_path}/run\udcff'))
    assert not any(tmp_path.iterdir())
