"""Releases as users have them: modified tables, other folders, other files among the PNGs."""

import csv
import json
import os
import shutil

import cv2
import numpy as np
import pytest
from conftest import tool
from PIL import Image

from mmseg_ignite.apis import score_folder
from mmseg_ignite.datasets.prepared import METADATA, label_path
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.preparation import audit, prepare
from mmseg_ignite.preparation.release import COLUMNS, OPTIONAL, OVERVIEW, REQUIRED, read_overview

ONE = 'patient1_he_roi1'


def rewrite(release, columns, change=lambda row: row):
    """Write the overview with other columns."""
    path = release / OVERVIEW
    rows = [change(row) for row in csv.DictReader(path.open())]
    with path.open('w', newline='') as stream:
        writer = csv.DictWriter(stream, columns, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)


def kinds(result):
    return {f.kind for f in result.findings}


# --- columns


def test_unused_columns_may_be_missing(own_release, tmp_path):
    before = audit(own_release, tmp_path / 'before').entries
    unused = {'stain', 'original_tcga_id', 'image_path', 'annotation_path'}
    assert set(COLUMNS) - set(REQUIRED) - set(OPTIONAL) == unused
    rewrite(own_release, ['note', *(c for c in COLUMNS if c not in unused)], lambda row: row | {'note': 'mine'})
    result = audit(own_release, tmp_path / 'out')
    assert 'overview-optional' not in kinds(result) and result.entries == before


@pytest.mark.parametrize('column', OPTIONAL)
def test_missing_optional_columns_are_named_in_a_warning(own_release, tmp_path, column):
    rewrite(own_release, [c for c in COLUMNS if c != column])
    result = audit(own_release, tmp_path / 'out')
    (found,) = [f for f in result.findings if f.kind == 'overview-optional']
    assert found.severity == 'warning' and found.detail == f'it lacks the column(s) {column}'
    assert not kinds(result) & {'split-unknown', 'shape-malformed'}  # reported once, not per row


@pytest.mark.parametrize('column', REQUIRED)
def test_missing_required_columns_are_named_in_an_error(own_release, tmp_path, column):
    rewrite(own_release, [c for c in COLUMNS if c != column])
    with pytest.raises(IgniteError, match=f'lacks the column.* {column}'):
        audit(own_release, tmp_path / 'out')


def test_the_required_columns_alone_are_enough_to_prepare_and_score(own_release, tmp_path):
    rewrite(own_release, REQUIRED)
    index = prepare(own_release, tmp_path / 'out')
    assert 'official' not in index['splits'] and not set(METADATA) & set(index['rois'][0])
    (tmp_path / 'predicted').mkdir()
    for name in index['splits']['patient-8-1-1']['test']:
        labels = np.load(label_path(tmp_path / 'out', name))
        cv2.imwrite(
            str(tmp_path / 'predicted' / f'{name}.png'), np.where(labels == 255, 0, labels + 1).astype(np.uint8)
        )
    result = score_folder(tmp_path / 'predicted', tmp_path / 'out', tmp_path / 'run', encoding='raw', samples=0)
    assert result['mIoU'] == 100


# --- folders and files


def nest(release, task, folder):
    shutil.move(release / task, release / 'moved')
    (release / task).mkdir()
    shutil.move(release / 'moved', release / task / folder)


@pytest.mark.parametrize('tasks', [('images', 'annotations'), ('annotations',)])
@pytest.mark.parametrize('wrapper', [None, 'data'])
def test_pngs_are_found_in_a_nested_folder(own_release, tmp_path, tasks, wrapper):
    """In images/images/he, as one public loader unpacks the archives, and in any other single folder."""
    before = audit(own_release, tmp_path / 'before').entries
    for task in tasks:
        nest(own_release, task, wrapper or task)
        (own_release / task / '__MACOSX' / 'he').mkdir(parents=True)
        (own_release / task / '__MACOSX' / 'he' / f'{ONE}.png').write_bytes(b'resource fork')
    result = audit(own_release, tmp_path / 'out')
    found = {f.subject: f.detail for f in result.findings if f.kind == 'layout-nested'}
    assert found == {f'{task}/he': f'its PNGs are in {task}/{wrapper or task}/he' for task in tasks}
    assert result.entries == before


@pytest.mark.parametrize('task', ['images', 'annotations'])
def test_a_release_without_pngs_is_one_sentence(own_release, tmp_path, capsys, task):
    for change, words in (
        (lambda: nest(own_release, task, 'a'), None),
        (lambda: shutil.copytree(own_release / task / 'a', own_release / task / 'b'), r'several folders .*\(a, b\)'),
        (lambda: shutil.rmtree(own_release / task), f'no PNG files in {task}/he'),
        (lambda: (own_release / task / 'he').mkdir(parents=True), f'no PNG files in {task}/he'),
        (lambda: (own_release / task / 'he' / '._x.png').touch(), f'no PNG files in {task}/he'),
        (lambda: (own_release / task / 'he' / f'{ONE}.tif').touch(), 'TIFF'),
    ):
        change()
        if words is None:
            continue
        for run in (audit, prepare):
            with pytest.raises(IgniteError, match=words) as caught:
                run(own_release, tmp_path / 'out')
            assert len(str(caught.value).splitlines()) == 1
    assert tool('prepare_ignite', '--release', own_release, '--out', tmp_path / 'out') == 2
    assert capsys.readouterr().err.count('error:') == 1


def test_a_tiff_instead_of_a_png_is_named(own_release, tmp_path):
    for task in ('images', 'annotations'):
        path = own_release / task / 'he' / f'{ONE}.png'
        Image.open(path).save(path.with_suffix('.tif'))
        path.unlink()
    with pytest.raises(IgniteError):
        audit(own_release, tmp_path / 'out')
    found = json.loads((tmp_path / 'out.audit.json').read_text())['findings']
    missing = [f for f in found if f['kind'] in ('image-missing', 'mask-missing')]
    assert len(missing) == 2 and all(f'{ONE}.tif does, but only .png files are read' in f['detail'] for f in missing)


def test_hidden_files_are_not_surplus(own_release, tmp_path):
    before = audit(own_release, tmp_path / 'before').entries
    for task in ('images', 'annotations'):
        for name in (f'._{ONE}.png', '.DS_Store', '.hidden.png', 'Thumbs.db'):
            (own_release / task / 'he' / name).write_bytes(b'not a picture')
    result = audit(own_release, tmp_path / 'out')
    assert 'file-surplus' not in kinds(result) and result.entries == before


def test_a_folder_whose_name_is_not_utf8_is_written(own_release, tmp_path):
    try:
        nest(own_release, 'images', os.fsdecode(b'caf\xe9'))
    except OSError:
        pytest.skip('this file system accepts only UTF-8 names')
    audit(own_release, tmp_path / 'out')
    assert r'images/caf\\xe9/he' in (tmp_path / 'out.audit.json').read_text()


def test_a_release_may_have_any_number_of_rois(own_release, tmp_path):
    """Other versions of the record may list more or fewer."""
    rows = list(csv.DictReader((own_release / OVERVIEW).open()))
    rewrite(own_release, COLUMNS, lambda row: row | {'task': row['task'] if row['name'] != ONE else 'pdl1'})
    overview = read_overview(own_release)
    assert len(overview.names) == len([r for r in rows if r['task'] == 'he_tissue_segmentation']) - 1
    assert len(audit(own_release, tmp_path / 'out').entries) == 3
