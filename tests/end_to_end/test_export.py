"""tools/export.py: packages of a tiny model, and what users get wrong, each in one sentence with nothing half-written."""

import json
import os
import resource
import shutil
import signal

import pytest
import torch
from conftest import DEMO_CONFIG, single_error, tool
from export_example import OPTIONS, tiny_config, write_checkpoint, write_members
from PIL import Image

from mmseg_ignite.apis import export, load_config
from mmseg_ignite.apis.exporting import _scores
from mmseg_ignite.engine import open_checkpoint
from mmseg_ignite.engine.ensembles import Ensemble
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.export import packages, safetensors_package
from mmseg_ignite.export.records import RECORD, changed_files
from mmseg_ignite.files import sha256

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def cfg():
    return tiny_config()


@pytest.fixture(scope='module')
def trained(cfg, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp('trained') / 'iter_7.pth', cfg)


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'out'


def snapshot(folder):
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob('*') if path.is_file()}


def write_scores(path, checksum, **facts):
    """Write metrics.json of a test of a checkpoint."""
    score = dict(IoU=50.0, Dice=66.7, Recall=60.0, Precision=60.0, pixels=100, predicted_pixels=90)
    content = dict(
        schema_version=1, mIoU=50.0, mDice=66.7, mAcc=60.0, aAcc=70.0, fwIoU=55.0, kappa=0.5, classes_present=1, patients=3,
        rois=3, classes=dict(Stroma=score), provenance=dict(checkpoint_sha256=checksum, **facts),
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def options(**more):
    return ['--cfg-options', *(f'{key}={value}'.replace(', ', ',') for key, value in {**OPTIONS, **more}.items())]


def safetensors(cfg, checkpoint, out, **settings):
    """Export quickly: this format runs no network, and a given image spares drawing tissue."""
    image = out.parent / 'tissue.png'
    image.parent.mkdir(parents=True, exist_ok=True)
    if not image.exists():
        Image.new('RGB', (64, 64)).save(image)
    return export(cfg, checkpoint, out, ['safetensors'], images=[image], report=lambda line: None, **settings)


def test_tool_writes_packages_that_are_exported_again(trained, out, capsys):
    status = tool('export', DEMO_CONFIG, trained, '--out', out, '--format', 'safetensors', 'safetensors', *options())
    assert status == 0
    printed = capsys.readouterr().out
    assert printed.count('safetensors: ') == 2 and 'no scores' in printed and 'synthetic tissue' in printed
    package = out / 'safetensors'
    assert [path.name for path in out.iterdir()] == ['safetensors'] and not changed_files(package)
    record = json.loads((package / RECORD).read_text())
    assert record['format'] == 'safetensors' and record['checkpoints'][0]['sha256'] == sha256(trained)
    again = load_config(package / 'config.py')
    safetensors(again, package / 'model.safetensors', out / 'again')
    weights = [
        open_checkpoint(path / 'model.safetensors')['state_dict'] for path in (package, out / 'again/safetensors')
    ]
    assert all(torch.equal(value, weights[1].pop(key)) for key, value in weights[0].items()) and not weights[1]
    assert f'# {DEMO_CONFIG.stem}' in (out / 'again/safetensors/MODEL_CARD.md').read_text()


def test_wrong_inputs_end_in_one_sentence(trained, out, tmp_path, capsys):
    other, text = tmp_path / 'other.pth', tmp_path / 'text.pth'
    write_checkpoint(other, tiny_config(**{'model.decode_head.channels': 24}))
    text.write_text('no weights')
    damaged, small, scores = tmp_path / 'a.png', tmp_path / 'b.png', tmp_path / 'metrics.json'
    damaged.write_bytes(b'\x89PNG\r\n')
    Image.new('RGB', (80, 20)).save(small)
    write_scores(scores, 'ab' * 32)
    for checkpoint, more, sentence in (
        (other, [], 'is a checkpoint of another model'),
        (text, [], 'text.pth contains objects other than weights'),
        (tmp_path / 'missing.pth', [], 'missing.pth'),
        (trained, ['--images', damaged], 'a.png'),
        (trained, ['--images', small], 'at least 32 px'),
        (trained, ['--metrics', scores], 'has the scores of another checkpoint'),
        (trained, ['--metrics', text], 'is not valid JSON'),
    ):
        status = tool('export', DEMO_CONFIG, checkpoint, '--out', out, '--format', 'safetensors', *more, *options())
        assert status == 2 and sentence in single_error(capsys), sentence
        assert not out.exists()


def test_formats_are_checked(cfg, trained, out):
    with pytest.raises(IgniteError, match="the format is 'tensorflow'; one of onnx, "):
        export(cfg, trained, out, ['safetensors', 'tensorflow'])
    assert not out.exists()


def test_nothing_is_written_if_a_library_is_missing_for_one_of_the_formats(cfg, trained, out, monkeypatch):
    class Missing:
        FILES = ('x',)

        @staticmethod
        def check(exported):
            raise IgniteError('onnx is not installed.')

    real = packages.Format.load
    monkeypatch.setattr(packages.Format, 'load', lambda self: Missing if self.module == 'onnx_package' else real(self))
    with pytest.raises(IgniteError, match='onnx is not installed'):
        export(cfg, trained, out, ['safetensors', 'onnx'])
    assert not out.exists()


def test_folders_with_other_files_are_kept(cfg, trained, out):
    folder = out / 'safetensors'
    folder.mkdir(parents=True)
    (folder / 'thesis.txt').write_text('mine')
    for overwrite, sentence in ((False, 'has files already'), (True, 'files that no export wrote')):
        with pytest.raises(IgniteError, match=sentence):
            safetensors(cfg, trained, out, overwrite=overwrite)
    (folder / 'thesis.txt').rename(folder / 'config.py')  # the name of one of our files
    with pytest.raises(IgniteError, match='files that no export wrote'):
        safetensors(cfg, trained, out, overwrite=True)
    assert snapshot(out).keys() == {'safetensors/config.py'}


def test_packages_are_replaced_only_unchanged_and_only_if_asked(cfg, trained, out):
    (folder,) = safetensors(cfg, trained, out)
    before = snapshot(out)
    with pytest.raises(IgniteError, match='replace an earlier export by --overwrite'):
        safetensors(cfg, trained, out)
    safetensors(cfg, trained, out, overwrite=True)
    assert snapshot(out).keys() == before.keys() and not changed_files(folder)

    card = folder / 'MODEL_CARD.md'
    text = card.read_text()
    card.write_text(text + 'Authors: me')
    with pytest.raises(IgniteError, match=r'was changed since it was exported \(e.g. MODEL_CARD.md\)'):
        safetensors(cfg, trained, out, overwrite=True)
    card.unlink()
    assert changed_files(folder) == ['MODEL_CARD.md']
    card.write_text(text)
    assert not changed_files(folder)
    for broken in ('', '[]', '{"written_by": "mmseg_ignite 1", "files": 3}', '{"written_by": "other", "files": {}}'):
        (folder / RECORD).write_text(broken)
        assert changed_files(folder) == [RECORD]


def test_inputs_are_never_replaced(cfg, trained, out, prepared):
    (folder,) = safetensors(cfg, trained, out)
    before = snapshot(out)
    with pytest.raises(IgniteError, match=r'has an input of this export \(model.safetensors\)'):
        safetensors(cfg, folder / 'model.safetensors', out, overwrite=True)
    link = out.parent / 'link'
    link.symlink_to(out, target_is_directory=True)
    with pytest.raises(IgniteError, match='has an input of this export'):
        safetensors(cfg, folder / 'model.safetensors', link, overwrite=True)
    assert snapshot(out) == before
    with pytest.raises(IgniteError, match='is in the prepared data set'):
        export(cfg, trained, prepared, ['safetensors'])
    with pytest.raises(IgniteError, match='is a file'):
        export(cfg, trained, trained, ['safetensors'])


@pytest.mark.parametrize('kind', ['safetensors', 'qupath'])
def test_full_disk_leaves_nothing(cfg, trained, out, kind):
    Image.new('RGB', (64, 64)).save(out.parent / 'tissue.png')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(IgniteError, match=f'out/{kind} cannot be written'):
            export(cfg, trained, out, [kind], images=[out.parent / 'tissue.png'], report=lambda line: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('PytorchStreamWriter failed writing file data/0')])
def test_export_that_ends_in_the_middle_keeps_the_earlier_package(cfg, trained, out, monkeypatch, error):
    safetensors(cfg, trained, out)
    before = snapshot(out)

    def fail(*_):
        raise error

    monkeypatch.setattr(safetensors_package, '_compare', fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else IgniteError):
        safetensors(cfg, trained, out, overwrite=True)
    assert snapshot(out) == before and [path.name for path in out.iterdir()] == ['safetensors']


def test_prepared_data_give_the_tissue_of_the_comparison(cfg, trained, out, prepared):
    lines = []
    own = tiny_config(data_root=str(prepared))
    export(own, trained, out, ['safetensors'], report=lines.append)
    assert not any('synthetic' in line for line in lines)


def test_card_has_the_scores_of_this_checkpoint_alone(cfg, trained, out, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    checkpoint = shutil.copy(trained, folder / 'iter_7.pth')
    write_scores(folder / 'metrics.json', sha256(trained))
    safetensors(cfg, checkpoint, out / '0')
    assert '| mIoU | 50.0 |' in (out / '0/safetensors/MODEL_CARD.md').read_text()
    safetensors(cfg, checkpoint, out / '1', metrics=folder)
    assert '| mIoU | 50.0 |' in (out / '1/safetensors/MODEL_CARD.md').read_text()

    lines = []
    write_scores(folder / 'metrics.json', 'ab' * 32)
    assert _scores(Ensemble.read(checkpoint), None, lines.append) is None
    assert 'has the scores of another checkpoint' in lines[0]
    write_scores(folder / 'metrics.json', None)
    with pytest.raises(IgniteError, match='does not state whose scores'):
        _scores(Ensemble.read(checkpoint), folder, lines.append)


def test_scores_of_an_ensemble_are_those_of_its_members(cfg, tmp_path):
    path = write_members(tmp_path, cfg)
    ensemble, lines = Ensemble.read(path), []
    sums = ensemble.checksums()
    write_scores(tmp_path / 'metrics.json', None)  # of the cross-validation
    write_scores(tmp_path / 'test/metrics.json', sums['checkpoint_sha256'], members_sha256=sums['members_sha256'])
    assert _scores(ensemble, None, lines.append)['mIoU'] == 50 and not lines
    write_checkpoint(tmp_path / 'fold1/iter_7.pth', cfg)  # trained again, under the same name
    assert _scores(ensemble, None, lines.append) is None and 'no scores' in lines[0]


@pytest.mark.parametrize('um_per_px', [1e9, -1, '0.5', [1]])
def test_a_checkpoint_with_a_resolution_that_cannot_be_is_refused(cfg, trained, out, um_per_px):
    content = open_checkpoint(trained)
    content['meta'] = dict(mmseg_ignite=dict(um_per_px=um_per_px))
    out.mkdir()
    torch.save(dict(state_dict=content['state_dict'], meta=content['meta']), out / 'iter_1.pth')
    with pytest.raises(IgniteError, match='states that it was trained at'):
        safetensors(cfg, out / 'iter_1.pth', out)


def test_pipes_and_impossible_names_end_in_one_sentence(cfg, trained, out, tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(IgniteError, match='no regular file'):
        safetensors(cfg, trained, out, metrics=tmp_path / 'pipe')
    out.mkdir()
    os.mkfifo(out / 'last_checkpoint')
    with pytest.raises(IgniteError, match='contains no checkpoint'):
        safetensors(cfg, out, out)
    with pytest.raises(IgniteError, match='cannot be created'):
        safetensors(cfg, trained, tmp_path / ('x' * 300))


def test_a_package_of_an_export_that_was_faster_is_kept(cfg, trained, out, monkeypatch):
    def compare(*_):
        monkeypatch.undo()
        safetensors(cfg, trained, out)

    monkeypatch.setattr(safetensors_package, '_compare', compare)
    with pytest.raises(IgniteError, match='has files already'):
        safetensors(cfg, trained, out)
    assert [path.name for path in out.iterdir()] == ['safetensors']
