"""Predicting into folders that hold something, names, kills at any moment, and takeovers; the network is a pattern."""

import json
import os
import shutil
import socket
import sys

import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, ROOT
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from mmseg_ignite import cli
from mmseg_ignite.apis import Predictor, load_config, predict_files
from mmseg_ignite.apis import predicting as module
from mmseg_ignite.engine import claims
from mmseg_ignite.errors import IgniteError

sys.path.insert(0, str(ROOT / 'tests' / 'slides'))
pytest.importorskip('openslide', reason='the packages of mmseg_ignite[slides] are not installed')
pytestmark = pytest.mark.usefixtures('one_thread')

import tifffile  # noqa: E402
from slide_example import write_slide  # noqa: E402

FILES = ('label', 'geojson', 'areas', 'page')
TABLES = {'run.json', 'records', 'areas.csv', 'ratios.csv', 'slides.html', 'classes.json'}


def results(*names, slide=True):
    endings = ('.ome.tif', '_preview.png', '.geojson', '_tiles') if slide else ('.png', '.geojson', '_tiles')
    return {name + ending for name in names for ending in endings}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A network with random weights, at 2 um/px."""
    cfg = load_config(DEMO_CONFIG)
    cfg.model.backbone.init_cfg = cfg.model.data_preprocessor.size = None
    cfg.model.test_cfg = dict(mode='slide', crop_size=(96, 96), stride=(64, 64))
    init_default_scope('mmseg')
    path = tmp_path_factory.mktemp('model') / '0.pth'
    meta = dict(mmseg_ignite=dict(um_per_px=2.0))
    torch.manual_seed(0)  # any weights will do, but some predict glass alone
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta=meta), path)
    return Predictor(cfg, path, device='cpu')


@pytest.fixture
def predictor(trained, monkeypatch):
    """A predictor whose labels are a pattern, which costs nothing."""

    def label(self, image, out, *_):
        out[0 : out.shape[0]] = np.indices(out.shape).sum(0) // 20 % 16

    monkeypatch.setattr(Predictor, 'label', label)
    return trained


@pytest.fixture
def slides(tmp_path):
    """A folder with two slides."""
    folder = tmp_path / 'in'
    folder.mkdir()
    for number in range(2):
        write_slide(folder / f's{number}.svs', (150, 200), 1.0, 1, levels=(1,), tile=64, seed=number)
    return folder


def picture(path, size=(70, 90)):
    Image.fromarray(np.random.default_rng().integers(0, 255, (*size, 3), np.uint8)).save(path, format='PNG')
    return path


def predict(predictor, paths, out, formats=FILES, lines=None, **options):
    """Return the faults."""
    report = (lambda text: None) if lines is None else lines.append
    return predict_files(predictor, paths, out, report, formats=formats, **options)


def names(out):
    return {path.name for path in out.iterdir()}


# names and places


@pytest.mark.parametrize('name', ['...png', '..png', '.tables.png', '.ome.tif'])
def test_name_with_a_dot_does_not_remove_the_output_folder(predictor, tmp_path, name):
    """'...png' without its suffix is '..', the folder around the scratch folder."""
    out, path = tmp_path / 'out', picture(tmp_path / name)
    out.mkdir()
    (out / 'mine.txt').write_text('kept')
    faults = predict(predictor, [path, picture(tmp_path / 'good.png')], out)
    assert len(faults) == 1 and 'starts with a dot' in faults[0]
    assert names(out) == {'mine.txt'} | TABLES | results('good', slide=False)


@pytest.mark.parametrize('length', [201, 251])
def test_long_name_does_not_stop_the_others(predictor, tmp_path, length):
    paths = [picture(tmp_path / ('a' * length + '.png')), picture(tmp_path / 'good.png')]
    faults = predict(predictor, paths, tmp_path / 'out')
    assert len(faults) == 1 and f'{length} bytes' in faults[0]
    assert results('good', slide=False) <= names(tmp_path / 'out')


def test_longest_name_is_predicted(predictor, tmp_path):
    path = tmp_path / ('a' * 200 + '.png')
    assert not predict(
        predictor, [picture(path)], tmp_path / 'out', formats=(*FILES, 'probability', 'entropy', 'overlay')
    )


def test_file_given_by_several_paths_is_one_input(predictor, slides, tmp_path, monkeypatch):
    (tmp_path / 'link').symlink_to(slides)
    monkeypatch.chdir(slides)
    paths, lines = ['s0.svs', slides / 's0.svs', tmp_path / 'link' / 's0.svs', './../in/s0.svs'], []
    assert not predict(predictor, paths, tmp_path / 'out', lines=lines)
    assert len(lines) == 1 and lines[0].startswith('[1/1]')


def test_results_beside_inputs_do_not_become_inputs(predictor, slides, tmp_path):
    picture(slides / 'roi.tif')
    formats, lines = (*FILES, 'overlay'), []
    assert not predict(predictor, [slides], slides, formats)
    for path in (slides, slides / '*', slides / '**' / '*'):
        lines.clear()
        assert not predict(predictor, [path], slides, formats, lines)
        assert sum('is finished already' in line for line in lines) == 3
    assert not predict(predictor, [slides], tmp_path / 'other', formats)
    assert len(json.loads((tmp_path / 'other' / 'run.json').read_text())['images']) == 3


def test_foreign_folder_of_the_name_of_tiles_is_kept(predictor, slides, tmp_path):
    (tmp_path / 'out' / 's0_tiles').mkdir(parents=True)
    (tmp_path / 'out' / 's0_tiles' / 'mine.txt').write_text('kept')
    with pytest.raises(IgniteError, match='s0_tiles exists and is kept'):
        predict(predictor, [slides], tmp_path / 'out')
    assert (tmp_path / 'out' / 's0_tiles' / 'mine.txt').exists()


def test_slide_of_another_folder_does_not_replace_results_of_its_name(predictor, slides, tmp_path):
    other, out = tmp_path / 'other', tmp_path / 'out'
    other.mkdir()
    shutil.copy(slides / 's1.svs', other / 's0.svs')
    assert not predict(predictor, [slides / 's0.svs'], out)
    before = (out / 's0.geojson').read_bytes(), (out / 'records' / 's0.json').read_bytes()
    (fault,) = predict(predictor, [other / 's0.svs'], out)
    assert 'would replace the results of' in fault and '--overwrite' in fault
    assert before == ((out / 's0.geojson').read_bytes(), (out / 'records' / 's0.json').read_bytes())
    assert not predict(predictor, [other / 's0.svs'], out, overwrite=True)


# folders with earlier results


def test_results_of_earlier_formats_do_not_stay(predictor, slides, tmp_path):
    """They would disagree with the new ones, and outlines whose checksum is forgotten could never be replaced."""
    out = tmp_path / 'out'
    assert not predict(predictor, [slides], out)
    assert not predict(predictor, [slides], out, formats=('label',), overwrite=True, min_area=0)
    found = {f's{i}{ending}' for i in range(2) for ending in ('.ome.tif', '_preview.png')}
    assert names(out) == found | {'run.json', 'records', 'classes.json'}
    assert not predict(predictor, [slides], out, overwrite=True)
    assert names(out) == TABLES | results('s0', 's1')


def test_removed_results_do_not_stop_the_others(predictor, slides, tmp_path):
    out = tmp_path / 'out'
    assert not predict(predictor, [slides], out)
    for path in out.glob('s1*'):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not predict(predictor, [slides / 's0.svs'], out)
    assert [entry['file'] for entry in json.loads((out / 'run.json').read_text())['images']] == [str(slides / 's0.svs')]
    assert 's1' not in (out / 'areas.csv').read_text()
    assert not predict(predictor, [slides], out)
    assert names(out) == TABLES | results('s0', 's1')


def test_emptied_folder_of_tiles_is_written_again(predictor, slides, tmp_path):
    assert not predict(predictor, [slides], tmp_path / 'out')
    shutil.rmtree(tmp_path / 'out' / 's1_tiles')
    (tmp_path / 'out' / 's1_tiles').mkdir()
    assert not predict(predictor, [slides], tmp_path / 'out')
    assert (tmp_path / 'out' / 's1_tiles' / 'tiles.json').exists()


def test_slide_with_areas_alone_is_finished(predictor, slides, tmp_path):
    lines = []
    for _ in range(2):
        assert not predict(predictor, [slides], tmp_path / 'out', formats=('areas',), lines=lines)
    assert sum('finished already' in line for line in lines) == 2


def test_um_per_px_that_contradicts_the_file_is_noted(predictor, slides, tmp_path):
    for um_per_px, noted in ((None, False), (1.5, True)):
        lines, out = [], tmp_path / f'{um_per_px}'
        assert not predict(predictor, [slides], out, formats=('areas',), lines=lines, um_per_px=um_per_px)
        assert all(('of --mpp was used' in line) == noted for line in lines)
        assert all(f'{out}{os.sep}areas.csv' in line for line in lines)


def test_bad_slide_of_a_case_does_not_stop_the_tables(predictor, slides, tmp_path):
    (slides / 'bad.svs').write_text('no slide')
    (tmp_path / 'cases.csv').write_text('slide,case\ns0,A\ns1,A\nbad,B\n')
    options = dict(formats=('areas',), cases=tmp_path / 'cases.csv')
    assert len(predict(predictor, [slides], tmp_path / 'out', **options)) == 1
    assert (tmp_path / 'out' / 'ratios.csv').read_text().count('\n') == 5
    (tmp_path / 'cases.csv').write_text('slide,case\nnone,A\n')
    with pytest.raises(IgniteError, match="'none'"):  # before any work
        predict(predictor, [slides], tmp_path / 'new', **options)
    assert not (tmp_path / 'new').exists()


# reading


def test_transparent_pixels_of_a_resampled_image_are_certain_background(trained, tmp_path):
    pixels = np.random.default_rng().integers(0, 255, (150, 190, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[20:60, 30:110, 3] = 0
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    assert not predict(trained, [tmp_path / 'a.png'], tmp_path / 'out', ('probability',), um_per_px=1.0)
    found = tifffile.imread(tmp_path / 'out' / 'a_probability.ome.tif', level=0)[:, 20:60, 30:110]
    assert (found[0] == 255).all() and not found[1:].any()


def test_error_of_reading_does_not_blame_the_output_folder(predictor, slides, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(5, 'Input/output error')

    monkeypatch.setattr(Predictor, 'label', broken)
    (fault,) = predict(predictor, [slides / 's0.svs'], tmp_path / 'out')
    assert 's0.svs' in fault and 'Input/output error' in fault and 'written' not in fault


def test_array_that_is_an_archive_or_a_pipe_is_one_sentence(predictor, tmp_path):
    np.savez(tmp_path / 'a.npz', np.zeros((64, 64, 3), np.uint8))
    (tmp_path / 'a.npz').rename(tmp_path / 'a.npy')
    os.mkfifo(tmp_path / 'b.npy')
    faults = predict(predictor, [tmp_path / 'a.npy', tmp_path / 'b.npy'], tmp_path / 'out')
    assert 'archive of arrays' in faults[0] and 'regular file' in faults[1]


# processes that end or stand


def run_until(name, after, predictor, slides, out, options):
    """Predict in a new process that is killed before or after it puts a file in place; return whether it was."""
    if (pid := os.fork()) == 0:
        replace = os.replace

        def replaced(source, target):
            at = os.path.basename(target) == name and '.unfinished' not in str(target)
            if at and not after:
                os._exit(9)
            replace(source, target)
            if at:
                os._exit(9)

        os.replace = replaced
        try:
            predict(predictor, [slides], out, **options)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.parametrize('earlier', [False, True])
@pytest.mark.parametrize('name', ['s0.json', 's0.geojson', 's0_tiles', 'run.json', 'areas.csv', 'slides.html'])
def test_process_killed_while_it_puts_files_in_place_locks_nobody_out(predictor, slides, tmp_path, name, earlier):
    """The next run neither refuses its files as foreign nor leaves any behind."""
    (slides / 's1.svs').unlink()
    out, options = tmp_path / 'out', dict(overwrite=earlier)
    for after in (False, True):
        if earlier:
            assert not predict(predictor, [slides], out, background=True, overwrite=True)
        assert run_until(name, after, predictor, slides, out, options)
        assert not predict(predictor, [slides], out, **options), after
        assert names(out) == TABLES | results('s0')
        if not earlier:
            shutil.rmtree(out)


def test_slide_of_a_process_killed_while_it_moved_files_is_done_by_the_others(predictor, slides, tmp_path, monkeypatch):
    """The record that it leaves is not taken for the fault of a process that has just failed."""
    out, now = tmp_path / 'out', module.time.time()
    assert not predict(predictor, [slides], out)
    path = out / 'records' / 's0.json'
    path.write_text(json.dumps(dict(json.loads(path.read_text()), error='it was not finished: run again.')))
    monkeypatch.setattr(module.time, 'time', lambda: now - 10)  # the other process started before
    assert not predict(predictor, [slides], out)
    assert 'error' not in json.loads(path.read_text())


@pytest.mark.parametrize('fails', [False, True])
def test_suspended_process_keeps_off_a_slide_that_was_taken_over(predictor, slides, tmp_path, monkeypatch, fails):
    """Neither its result nor its fault replaces the record of the other process, whose files it leaves alone."""
    out, real, lines = tmp_path / 'out', module.predict_input, []

    def suspended(given, item, folder, options):
        monkeypatch.setattr(module, 'predict_input', real)
        entry = real(given, item, folder, options)
        (out / '.claims' / f'{item.name}.claim').unlink()
        with monkeypatch.context() as patch:  # the other process, on another machine
            patch.setattr(socket, 'gethostname', lambda: 'other')
            assert not predict(given, [item.path], out)
        lines.append((out / 'records' / f'{item.name}.json').read_bytes())
        if fails:
            raise MemoryError
        return entry

    monkeypatch.setattr(module, 'predict_input', suspended)
    monkeypatch.setattr(module, '_WAIT', 0.01)
    assert not predict(predictor, [slides / 's0.svs'], out, lines=lines)
    assert (out / 'records' / 's0.json').read_bytes() == lines[0]
    assert lines[-1] == f'[1/1] {slides / "s0.svs"} is finished already'


def test_results_of_other_options_at_the_same_time_are_not_replaced(predictor, slides, tmp_path, monkeypatch):
    """Neither process sees results of the other at its start."""
    out, real = tmp_path / 'out', module.predict_input

    def meanwhile(given, item, *rest):
        monkeypatch.setattr(module, 'predict_input', real)
        assert not predict(given, [slides / 's1.svs'], out, min_area=0)
        return real(given, item, *rest)

    monkeypatch.setattr(module, 'predict_input', meanwhile)
    with pytest.raises(IgniteError, match='results of other settings .*s1.svs: '):
        predict(predictor, [slides], out)


def test_output_that_nobody_reads_is_no_traceback(monkeypatch, capsys):
    """As after ``| head``."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, 'w') as stream, monkeypatch.context() as patch:
        patch.setattr(sys, 'stdout', stream)
        with pytest.raises(SystemExit, match='2'):
            cli.run(lambda: [print('a' * 1000) for _ in range(100)])
    assert capsys.readouterr().err == 'stopped: the program that read the output has ended.\n'


def test_full_disk_leaves_no_claim_without_an_owner(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(claims.json, 'dump', full)
    with pytest.raises(IgniteError, match='No space left'):
        claims.create(tmp_path / 'a.claim')
    assert not names(tmp_path)
