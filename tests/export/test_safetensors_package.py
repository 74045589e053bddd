"""The safetensors package: equal weights, a config without machine paths, refusal of tests on seen patients."""

import pytest
import torch
from conftest import DEMO_CONFIG
from export_example import exported, tiny_config, write_checkpoint, write_members
from mmengine.config import Config

from mmseg_ignite.apis import Predictor, load_config
from mmseg_ignite.engine import open_checkpoint
from mmseg_ignite.engine.ensembles import Ensemble
from mmseg_ignite.engine.training_record import TrainingRecord
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.export import safetensors_package
from mmseg_ignite.export.machine_paths import portable_config
from mmseg_ignite.export.safetensors_package import FILES, check, write
from mmseg_ignite.provenance import file_sha256

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def cfg():
    return tiny_config()


@pytest.fixture(scope='module')
def checkpoint(cfg, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp('trained') / 'iter_7.pth', cfg)


@pytest.fixture(scope='module')
def package(cfg, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp('safetensors')
    model = exported(cfg, checkpoint)
    check(model)
    write(folder, model)
    assert model.description.config_sha256 == file_sha256(folder / 'config.py')
    return folder


def test_weights_and_training_record_are_those_of_the_checkpoint(package, checkpoint):
    assert {path.name for path in package.iterdir()} == {'config.py', 'model.safetensors', 'MODEL_CARD.md'} <= {*FILES}
    found, given = (open_checkpoint(path) for path in (package / 'model.safetensors', checkpoint))
    assert found['state_dict'].keys() == given['state_dict'].keys()
    for key, value in given['state_dict'].items():
        assert found['state_dict'][key].dtype == value.dtype and torch.equal(found['state_dict'][key], value), key
    assert TrainingRecord.of_meta(found['meta']) == TrainingRecord.of_meta(given['meta'])
    assert found['meta']['iter'] == 7 and 'cfg' not in found['meta']


def test_package_predicts_like_the_checkpoint_with_its_own_config(package, cfg, checkpoint):
    image = torch.randint(0, 256, (72, 90, 3), dtype=torch.uint8).numpy()
    packed = Predictor(package / 'config.py', package / 'model.safetensors', 'cpu')
    assert (packed.predict(image) == Predictor(cfg, checkpoint, 'cpu').predict(image)).all()
    assert packed.um_per_px == 0.5


def test_tests_on_patients_of_the_training_are_refused(package):
    ensemble = Ensemble.read(package / 'model.safetensors')
    (package / 'index.json').write_text('{}')
    with pytest.raises(IgniteError, match='trained or validated on 1 of the 2 patients'):
        ensemble.seen_patients(ensemble.metas(), package, [dict(patient='bert'), dict(patient='zoe')])
    (package / 'index.json').unlink()


def test_card_says_that_the_files_name_patients(package):
    card = (package / 'MODEL_CARD.md').read_text(encoding='utf-8')
    assert 'The record names the patients' in card and 'model.safetensors' in card and 'anna' not in card


def test_ensemble_keeps_its_members_and_patients(cfg, tmp_path):
    path = write_members(tmp_path / 'folds', cfg)
    folder = tmp_path / 'package'
    folder.mkdir()
    write(folder, exported(cfg, path))
    names = {'config.py', 'ensemble.json', 'member0.safetensors', 'member1.safetensors', 'MODEL_CARD.md'}
    assert {entry.name for entry in folder.iterdir()} == names <= {*FILES}
    given, found = Ensemble.read(path), Ensemble.read(folder / 'ensemble.json')
    assert found.patients == {'anna', 'bert'} and len(found.members) == 2
    for ours, theirs in zip(found.members, given.members):
        weights = open_checkpoint(theirs)['state_dict']
        assert all(torch.equal(value, weights[key]) for key, value in open_checkpoint(ours)['state_dict'].items())
    image = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    labels = [Predictor(*pair, 'cpu').predict(image) for pair in ((cfg, path), (folder / 'config.py', found.path))]
    assert (labels[0] == labels[1]).all()


def test_config_has_no_paths_of_the_machine_and_no_initial_weights():
    cfg = tiny_config()
    cfg.work_dir, cfg.load_from = '/home/anna/run', 'https://example.org/x.pth'
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='/home/anna/mit.pth')
    cfg.vis_backends = [dict(type='LocalVisBackend', save_dir='/home/anna/plots')]
    cfg.test_dataloader.dataset.data_root = 'D:\\anna'
    text = portable_config(cfg, 'b0')
    assert not any(secret in text for secret in ('anna', 'nowhere', 'example.org', 'init_cfg', 'work_dir'))
    read = Config.fromstring(text, '.py')
    assert read.experiment_name == 'b0' and read.test_dataloader.dataset.data_root == read.data_root == 'data/ignite'
    assert read.model.decode_head == {k: v for k, v in cfg.model.decode_head.items() if k != 'init_cfg'}


def test_exported_config_can_be_exported_again_under_its_name(package):
    loaded = load_config(package / 'config.py')
    again = exported(loaded, package / 'model.safetensors')
    assert again.description.name == DEMO_CONFIG.stem


def test_weights_that_were_written_differently_are_refused(cfg, checkpoint, tmp_path, monkeypatch):
    real = safetensors_package.write_safetensors

    def wrong(path, weights, meta):
        name = sorted(weights)[3]
        real(path, {**weights, name: weights[name] + 1e-3}, meta)

    monkeypatch.setattr(safetensors_package, 'write_safetensors', wrong)
    with pytest.raises(IgniteError, match='1 differ'):
        write(tmp_path, exported(cfg, checkpoint))
