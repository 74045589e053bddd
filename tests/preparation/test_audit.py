"""One pass finds every fault of a release with its remedy, and nothing wrong is published."""

import csv
import gzip
import io
import json
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from conftest import tool
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.images.png import DamagedPicture, check_png, decode
from mmseg_ignite.labels import decode_mask
from mmseg_ignite.preparation import audit, prepare
from mmseg_ignite.preparation.findings import KINDS, Finding, findings_table
from mmseg_ignite.preparation.release import COLUMNS, OVERVIEW, compare_rows, read_overview
from mmseg_ignite.preparation.roi import locate

ONE, TWO = 'patient1_he_roi1', 'patient2_he_roi1'


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def image(release, name=ONE):
    return release / 'images' / 'he' / f'{name}.png'


def mask(release, name=ONE):
    return release / 'annotations' / 'he' / f'{name}.png'


def rewrite(release, change, row=0):
    """Change one data row of the overview, given as a dictionary."""
    path = release / OVERVIEW
    rows = list(csv.DictReader(path.open()))
    change(rows[row])
    with path.open('w', newline='') as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def put(column, value):
    return lambda release: rewrite(release, lambda row: row.update({column: value}))


def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def rebuild(path, pixels):
    """Replace the pixel data of a PNG; all chunks remain valid."""
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk(b'IDAT', zlib.compress(pixels)) + chunk(b'IEND', b''))


def resave(path, change):
    """Change a file as a Pillow image or array and save it again."""
    with Image.open(path) as picture:
        changed = change(picture.copy())
    (changed if isinstance(changed, Image.Image) else Image.fromarray(changed)).save(path)


def wide(path):
    pixels = np.array(Image.open(path)).astype(np.uint16) * 257
    cv2.imwrite(str(path), pixels)


def flip_byte(path, at):
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0x10
    path.write_bytes(bytes(content))


def truncate(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def palette(picture):
    picture = picture.convert('P') if picture.mode != 'L' else Image.fromarray(np.array(picture), 'P')
    if picture.palette is None or not picture.getpalette():
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    return picture


def colour_palette(picture):
    return picture.quantize(64)


def alpha(value):
    def change(picture):
        picture.putalpha(value)
        return picture

    return change


def with_stray(pixels):
    def change(picture):
        values = np.array(picture)
        values.ravel()[:pixels] = 1  # decodes to 255 where the mask is complemented
        return values

    return change


def copy_roi(release, source, target):
    for path in (image, mask):
        for suffix in ('', '_with_context'):
            path(release, target + suffix).write_bytes(path(release, source + suffix).read_bytes())


def same_patient_twice(release):
    copy_roi(release, ONE, TWO)
    rewrite(release, lambda row: row.update(patient_id='1'), 1)


def shifted_context(release):
    path = mask(release, ONE + '_with_context')
    values = np.array(Image.open(path))
    Image.fromarray(np.where(values > 0, values % 16 + 1, 0).astype(np.uint8)).save(path)


def pack(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


def drop(release, *columns):
    path = release / OVERVIEW
    rows = list(csv.DictReader(path.open()))
    with path.open('w', newline='') as stream:
        writer = csv.DictWriter(stream, [c for c in COLUMNS if c not in columns], extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)


def nest(folder):
    """Move images/he to images/images/he, as one public loader unpacks the archives."""
    outer = folder.with_name('outer')
    outer.mkdir()
    folder.rename(outer / folder.name)
    outer.rename(folder)


def blurred(mask):
    values = (256 - np.array(mask).astype(int)) % 256
    values = np.repeat(np.where(np.arange(values.shape[1]) // 17 % 2, 2, 9)[None], len(values), 0).astype(np.uint8)
    small = cv2.resize(values, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_LINEAR)
    missing = [(0, whole - part) for whole, part in zip(values.shape, small.shape)]
    return np.pad(small, missing, mode='edge')


def with_fringes(mask):
    values = np.array(mask)
    values[:] = 253
    values[30:, 40:] = 252
    values[29, 40:] = 251
    values[30:, 39] = 254
    return values


def orient(path, orientation):
    with Image.open(path) as picture:
        exif = Image.Exif()
        exif[0x112] = orientation
        picture.save(path, 'PNG', exif=exif)


def gigantic_jpeg(path):
    Image.open(path).save(path, 'JPEG')
    content = path.read_bytes()
    at = content.index(b'\xff\xc0') + 5
    path.write_bytes(content[:at] + struct.pack('>HH', 65500, 65500) + content[at + 4 :])


def transparent_palette(picture):
    picture = picture.quantize(64)
    picture.info['transparency'] = bytes([0] * 32 + [255] * 32)
    return picture


def direct(release):
    resave(mask(release), lambda m: ((256 - np.array(m).astype(int)) % 256).astype(np.uint8))


DAMAGE = {
    # The overview table
    'no UTF-8': (lambda r: (r / OVERVIEW).write_bytes(b'\xff\xfe\x00n\x00a'), 'overview-unreadable'),
    'cut gzip': (
        lambda r: (r / OVERVIEW).write_bytes(gzip.compress((r / OVERVIEW).read_bytes())[:200]),
        'overview-unreadable',
    ),
    'open quote': (lambda r: (r / OVERVIEW).write_text((r / OVERVIEW).read_text() + '"x'), 'overview-unreadable'),
    'empty table': (lambda r: (r / OVERVIEW).write_bytes(b''), 'overview-columns'),
    'no column': (lambda r: edit(r / OVERVIEW, 'patient_id', 'patient'), 'overview-columns'),
    'column twice': (lambda r: edit(r / OVERVIEW, 'roi_id', 'patient_id'), 'overview-columns'),
    'semicolons': (lambda r: edit(r / OVERVIEW, ',', ';'), 'overview-columns'),
    'header only': (lambda r: (r / OVERVIEW).write_text(','.join(COLUMNS) + '\n'), 'overview-empty'),
    'no H&E row': (lambda r: edit(r / OVERVIEW, 'he_tissue_segmentation', 'pdl1'), 'overview-empty'),
    'gzip': (lambda r: (r / OVERVIEW).write_bytes(gzip.compress((r / OVERVIEW).read_bytes())), 'overview-compressed'),
    'byte order mark': (lambda r: (r / OVERVIEW).write_bytes(b'\xef\xbb\xbf' + (r / OVERVIEW).read_bytes()), 'overview-bom'),
    'field too many': (lambda r: edit(r / OVERVIEW, f'{ONE},he', f'{ONE},,he'), 'file-surplus'),
    'field too many at the end': (lambda r: edit(r / OVERVIEW, f'{ONE}.png\n{TWO}', f'{ONE}.png,x\n{TWO}'), 'row-fields'),
    'fields too few': (lambda r: edit(r / OVERVIEW, f',../../data/annotations/he/{ONE}.png\n', '\n'), 'row-fields'),
    'path as name': (put('name', f'../{ONE}'), 'name-unsafe'),
    'absolute name': (put('name', '/etc/passwd'), 'name-unsafe'),
    'hidden name': (put('name', '.hidden'), 'name-unsafe'),
    'no name': (put('name', ''), 'name-unsafe'),
    'name twice': (put('name', TWO), 'name-duplicate'),
    'names differ in case': (put('name', TWO.upper()), 'name-case'),
    'patient of another name': (put('patient_id', '77'), 'name-patient'),
    'no patient': (put('patient_id', ' '), 'patient-missing'),
    'area is text': (put('area_mm2', 'large'), 'area-malformed'),
    'area is nan': (put('area_mm2', 'nan'), 'area-malformed'),
    'area is infinite': (put('area_mm2', 'inf'), 'area-malformed'),
    'area is zero': (put('area_mm2', '0'), 'area-malformed'),
    'area is negative': (put('area_mm2', '-1'), 'area-malformed'),
    'area in um2': (put('area_mm2', '1440'), 'resolution-impossible'),
    'area almost nothing': (put('area_mm2', '1e-323'), 'resolution-impossible'),
    'area thirty times too large': (put('area_mm2', '0.0432'), 'resolution-impossible'),
    'area twice too large': (put('area_mm2', '0.00288'), 'resolution-differs'),
    'patient in another spelling': (put('patient_id', '02.0'), 'patient-spelling'),
    'name of a context': (put('name', f'{ONE}_with_context'), 'name-unsafe'),
    'long name': (put('name', 'a' * 201), 'name-unsafe'),
    'shape is text': (put('shape', 'wide'), 'shape-malformed'),
    'shape lies': (put('shape', '(7, 9)'), 'shape-differs'),
    'unknown split': (put('split', 'holdout'), 'split-unknown'),
    'patient in both splits': (lambda r: rewrite(r, lambda row: row.update(patient_id='2', split='test')), 'official-leak'),
    'leaking folds': (lambda r: rewrite(r, lambda row: row.update(patient_id='2', validation_fold='fold4')), 'folds-leak'),
    'no label map': (lambda r: (r / 'he_label_map.json').unlink(), 'label-map-missing'),
    'label map no JSON': (lambda r: (r / 'he_label_map.json').write_text('{'), 'label-map-unreadable'),
    'another name for a class': (lambda r: edit(r / 'he_label_map.json', 'Stroma', 'Soma'), 'label-map-names'),
    'an id more': (lambda r: edit(r / 'he_label_map.json', ': 16', ': 16, "Artefact": 17'), 'label-map-changed'),
    'an id less': (lambda r: edit(r / 'he_label_map.json', ',\n    "Keratinization": 16', ''), 'label-map-changed'),
    'label map a list': (lambda r: (r / 'he_label_map.json').write_text('[1, 2]'), 'label-map-unreadable'),
    'gzip label map': (lambda r: pack(r / 'he_label_map.json'), 'label-map-compressed'),
    'cut gzip label map': (
        lambda r: (pack(r / 'he_label_map.json'), truncate(r / 'he_label_map.json', 0.5)), 'label-map-unreadable'
    ),
    'columns that are not needed': (lambda r: drop(r, 'split', 'scanner'), 'overview-optional'),
    'nested folders': (lambda r: [nest(r / task) for task in ('images', 'annotations')], 'layout-nested'),
    'swapped labels': (lambda r: edit(r / 'he_label_map.json', '"Stroma": 4', '"Stroma": 5'), 'label-map-changed'),
    # Images
    'image missing': (lambda r: image(r).unlink(), 'image-missing'),
    'image a folder': (lambda r: (image(r).unlink(), image(r).mkdir()), 'image-missing'),
    'surplus image': (lambda r: image(r, 'patient9_he_roi9').write_bytes(image(r).read_bytes()), 'file-surplus'),
    'surplus mask': (lambda r: mask(r, 'patient9_he_roi9').write_bytes(mask(r).read_bytes()), 'file-surplus'),
    'image empty': (lambda r: image(r).write_bytes(b''), 'image-unreadable'),
    'image is text': (lambda r: image(r).write_text('hello'), 'image-unreadable'),
    'image cut in the middle': (lambda r: truncate(image(r), 0.5), 'image-unreadable'),
    'image without its last bytes': (lambda r: truncate(image(r), 0.9995), 'image-unreadable'),
    'image with a flipped bit': (lambda r: flip_byte(image(r), 0.7), 'image-unreadable'),
    'image with too few rows': (lambda r: rebuild(image(r), b'\0' * 999), 'image-unreadable'),
    'image of gigantic claim': (
        lambda r: image(r).write_bytes(image(r).read_bytes().replace(b'IHDR\0\0\0', b'IHDR\0\0\xff', 1)), 'image-unreadable'
    ),
    'gray image': (lambda r: resave(image(r), lambda i: i.convert('L')), 'image-format'),
    'gray image with alpha': (lambda r: resave(image(r), lambda i: i.convert('LA')), 'image-format'),
    '16-bit image': (lambda r: wide(image(r)), 'image-format'),
    'transparent image': (lambda r: resave(image(r), alpha(99)), 'image-format'),
    'opaque alpha': (lambda r: resave(image(r), alpha(255)), 'image-opaque-alpha'),
    'palette image': (lambda r: resave(image(r), colour_palette), 'image-palette'),
    'JPEG named PNG': (lambda r: Image.open(image(r)).save(image(r), 'JPEG'), 'image-lossy'),
    'cut JPEG named PNG': (
        lambda r: (Image.open(image(r)).save(image(r), 'JPEG'), truncate(image(r), 0.5)),
        'image-unreadable',
    ),
    'image with an orientation': (lambda r: orient(image(r), 3), 'picture-turned'),
    'image of 40000 px a side': (
        lambda r: image(r).write_bytes(
            image(r).read_bytes()[:8] + chunk(b'IHDR', struct.pack('>IIBBBBB', 40000, 40000, 8, 2, 0, 0, 0))
            + image(r).read_bytes()[33:]
        ),
        'image-unreadable',
    ),
    'JPEG of gigantic claim': (lambda r: gigantic_jpeg(image(r)), 'image-unreadable'),
    'palette with transparent pixels': (lambda r: resave(image(r), transparent_palette), 'image-format'),
    'blank image': (lambda r: resave(image(r), lambda i: Image.new('RGB', i.size, 'black')), 'image-blank'),
    'picture under two patients': (lambda r: copy_roi(r, ONE, TWO), 'picture-patients'),
    'picture under two names': (same_patient_twice, 'picture-twice'),
    # Masks
    'mask missing': (lambda r: mask(r).unlink(), 'mask-missing'),
    'mask empty': (lambda r: mask(r).write_bytes(b''), 'mask-unreadable'),
    'mask cut': (lambda r: truncate(mask(r), 0.8), 'mask-unreadable'),
    'mask is JPEG': (lambda r: Image.open(mask(r)).save(mask(r), 'JPEG'), 'mask-unreadable'),
    'RGB mask': (lambda r: resave(mask(r), lambda m: m.convert('RGB')), 'mask-format'),
    'mask with alpha': (lambda r: resave(mask(r), lambda m: m.convert('LA')), 'mask-format'),
    '16-bit mask': (lambda r: wide(mask(r)), 'mask-format'),
    '1-bit mask': (lambda r: resave(mask(r), lambda m: m.convert('1')), 'mask-format'),
    'palette mask': (lambda r: resave(mask(r), palette), 'mask-palette'),
    'direct mask among others': (direct, 'mask-encodings'),
    'impossible values': (lambda r: resave(mask(r), lambda m: np.full(m.size[::-1], 99, np.uint8)), 'mask-values'),
    'one stray pixel': (lambda r: resave(mask(r), with_stray(1)), 'mask-stray'),
    'many stray pixels': (lambda r: resave(mask(r), with_stray(50)), 'mask-stray-many'),
    'nothing annotated': (lambda r: resave(mask(r), lambda m: np.zeros(m.size[::-1], np.uint8)), 'roi-unannotated'),
    'mask scaled with interpolation': (lambda r: resave(mask(r), blurred), 'mask-interpolated'),
    'mask with fringes': (lambda r: resave(mask(r), with_fringes), 'mask-fringes'),
    'mask with an orientation': (lambda r: orient(mask(r), 3), 'picture-turned'),
    'mask of another size': (lambda r: resave(mask(r), lambda m: np.full((9, 9), 3, np.uint8)), 'size-mismatch'),
    'mask turned by 90 degrees': (lambda r: resave(mask(r), lambda m: m.rotate(90, expand=True)), 'size-mismatch'),
    # Context
    'no context image': (lambda r: image(r, ONE + '_with_context').unlink(), 'context-missing'),
    'no context mask': (lambda r: mask(r, ONE + '_with_context').unlink(), 'context-missing'),
    'context image cut': (lambda r: truncate(image(r, ONE + '_with_context'), 0.5), 'context-faulty'),
    'context sizes differ': (
        lambda r: resave(mask(r, ONE + '_with_context'), lambda m: m.crop((0, 0, 90, 90))),
        'context-faulty',
    ),
    'context mask of other classes': (shifted_context, 'context-contradicts'),
    'context mask empty': (
        lambda r: resave(mask(r, ONE + '_with_context'), lambda m: np.zeros(m.size[::-1], np.uint8)), 'context-contradicts'
    ),
    'context of another place': (
        lambda r: resave(image(r, ONE + '_with_context'), lambda i: np.full((*i.size[::-1], 3), 9, np.uint8)),
        'context-contradicts',
    ),
}  # fmt: skip


def findings(path):
    return json.loads(path.read_text())['findings']


@pytest.mark.parametrize('name', DAMAGE)
def test_damaged_release(own_release, tmp_path, name):
    """Errors publish nothing and are in the audit beside the folder; other findings are in the published audit."""
    damage, kind = DAMAGE[name]
    damage(own_release)
    out, beside = tmp_path / 'out', tmp_path / 'out.audit.json'
    try:
        prepare(own_release, out)
        found = findings(out / 'audit.json')
        assert not beside.exists()
        assert all(f['severity'] != 'error' for f in found)
    except IgniteError as error:
        assert len(str(error).splitlines()) == 1
        found = findings(beside)
        assert not out.exists() and sorted(p.name for p in tmp_path.iterdir()) == ['out.audit.json', 'release']
        assert any(f['severity'] == 'error' for f in found)
    of_kind = [f for f in found if f['kind'] == kind]
    assert of_kind
    assert all((f['severity'], f['remedy']) == KINDS[kind] and f['detail'] and f['subject'] for f in of_kind)


def test_the_damages_cover_every_kind_of_fault():
    assert len(DAMAGE) >= 40
    assert {kind for _, kind in DAMAGE.values()} == set(KINDS) - {'excluded', 'label-map-stated', 'roi-small'}


def test_all_faults_are_found_in_one_pass(own_release, tmp_path, capsys):
    image(own_release).unlink()
    truncate(mask(own_release, TWO), 0.5)
    rewrite(own_release, lambda row: row.update(area_mm2='x'), 2)
    with pytest.raises(IgniteError, match='2 more'):
        prepare(own_release, tmp_path / 'out')
    with pytest.raises(IgniteError, match='2 more'):
        audit(own_release, tmp_path / 'other')
    for path in ('out.audit.json', 'other.audit.json'):
        kinds = sorted(f['kind'] for f in findings(tmp_path / path) if f['severity'] == 'error')
        assert kinds == ['area-malformed', 'image-missing', 'mask-unreadable']
    assert 'mask-unreadable' in capsys.readouterr().out


def kinds_of(own_release, tmp_path):
    """Return (kind, subject) of all findings of a failing audit."""
    with pytest.raises(IgniteError):
        audit(own_release, tmp_path / 'out')
    return {(f['kind'], f['subject']) for f in findings(tmp_path / 'out.audit.json')}


def test_all_faults_of_one_roi_are_found_in_one_pass(own_release, tmp_path):
    """Faults of its row, mask and context, and the same image of another patient."""
    copy_roi(own_release, ONE, TWO)
    rewrite(own_release, lambda row: row.update(area_mm2='x'))
    truncate(mask(own_release), 0.5)
    truncate(image(own_release, f'{ONE}_with_context'), 0.5)
    found = kinds_of(own_release, tmp_path)
    assert {kind for kind, subject in found if ONE in subject} == {
        'area-malformed',
        'mask-unreadable',
        'context-faulty',
        'picture-patients',
    }
    assert ('picture-patients', TWO) in found


@pytest.mark.parametrize('spelling', ['02', '2.0', 'patient2', 'Patient_02', 'p2', '\uff12'])
def test_one_patient_in_two_spellings(own_release, tmp_path, spelling):
    put('patient_id', spelling)(own_release)
    found = kinds_of(own_release, tmp_path)
    assert {s for kind, s in found if kind == 'patient-spelling'} == {ONE, TWO}
    assert len(prepare(own_release, tmp_path / 'out', exclude=[TWO])['rois']) == 3


@pytest.mark.parametrize('first, second', [('A1', 'B1'), ('1', '10'), ('TCGA-05-42', 'TCGA-05-43'), ('1.1', '1.2')])
def test_similar_ids_of_different_patients_are_accepted(own_release, first, second):
    put('patient_id', first)(own_release)
    rewrite(own_release, lambda row: row.update(patient_id=second), 1)
    overview = read_overview(own_release)
    assert not [f for f in compare_rows(overview.names, overview.records) if f.kind == 'patient-spelling']


def test_names_of_one_patient_with_two_ids(own_release, tmp_path):
    rewrite(own_release, lambda row: row.update(name='patient1_he_roi9'), 1)
    found = kinds_of(own_release, tmp_path)
    assert {s for kind, s in found if kind == 'patient-spelling'} == {ONE, 'patient1_he_roi9'}


@pytest.mark.parametrize(
    'which, kind', [(image, 'image-unreadable'), (mask, 'mask-unreadable'), ('context', 'context-faulty')]
)
def test_an_unreadable_file_is_a_finding(own_release, tmp_path, monkeypatch, which, kind):
    path = image(own_release, f'{ONE}_with_context') if which == 'context' else which(own_release)
    read, truncated = type(path).read_bytes, mask(own_release, TWO)
    truncate(truncated, 0.5)

    def read_bytes(self):
        if self == path:
            raise OSError(5, 'Input/output error', str(self))
        return read(self)

    monkeypatch.setattr(type(path), 'read_bytes', read_bytes)
    found = kinds_of(own_release, tmp_path)
    assert kind in {k for k, subject in found if ONE in subject}
    assert 'mask-unreadable' in {k for k, subject in found if TWO in subject}
    assert 'Input/output error' in (tmp_path / 'out.audit.json').read_text()


def test_no_file_is_surplus_if_the_overview_is_unreadable(own_release, tmp_path):
    edit(own_release / OVERVIEW, 'patient_id', 'patient')
    assert {kind for kind, _ in kinds_of(own_release, tmp_path)} == {'overview-columns'}


def test_a_faulty_context_names_the_fault_and_counts_stray_pixels(own_release, tmp_path):
    context = f'{ONE}_with_context'
    resave(mask(own_release, context), lambda m: palette(m).crop((0, 0, 90, 90)))
    values = np.array(Image.open(mask(own_release, f'{TWO}_with_context')))
    values[0, 0] = 99
    Image.fromarray(values).save(mask(own_release, f'{TWO}_with_context'))
    found = audit(own_release, tmp_path / 'out').findings
    assert [f.detail for f in found if f.kind == 'context-faulty'] == ['image and mask with context differ in size']
    assert [f.subject for f in found if f.kind == 'mask-stray'] == [f'annotations/he/{TWO}_with_context.png']
    truncate(image(own_release, context), 0.5)
    (fault,) = [f for f in audit(own_release, tmp_path / 'out').findings if f.kind == 'context-faulty']
    assert f'{context}.png' in fault.detail and 'truncated' in fault.detail


def test_blank_images_are_not_compared(own_release, tmp_path):
    for name in (ONE, TWO):
        resave(image(own_release, name), lambda i: Image.new('RGB', (80, 72), 'white'))
        resave(mask(own_release, name), lambda m: np.full((72, 80), 255, np.uint8))
    kinds = [f.kind for f in audit(own_release, tmp_path / 'out').findings]
    assert kinds.count('image-blank') == 2 and not {'picture-patients', 'picture-twice'} & set(kinds)


def test_leaks_of_skipped_rois_do_not_count(own_release, tmp_path):
    rewrite(own_release, lambda row: row.update(patient_id='2', split='test'))
    assert 'official-leak' in {f.kind for f in audit(own_release, tmp_path / 'out').findings}
    assert 'official-leak' not in {f.kind for f in audit(own_release, tmp_path / 'out', [ONE]).findings}
    image(own_release).unlink()
    result = audit(own_release, tmp_path / 'out', drop_faulty=True)
    assert result.left_out == [ONE] and 'official-leak' not in {f.kind for f in result.findings}


def test_names_that_differ_in_case_are_all_marked(own_release, tmp_path):
    put('name', TWO.upper())(own_release)
    assert {s for kind, s in kinds_of(own_release, tmp_path) if kind == 'name-case'} == {TWO, TWO.upper()}


def test_the_table_shows_names_unchanged_and_complete():
    name = 'x\\[/b][red]' + 'y' * 300
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(findings_table([Finding('mask-missing', name, 'gone', name)]))
    text = console.export_text()
    assert '\\[/b][red]' in text and text.count('y') >= 300 and '\u2026' not in text


def test_a_name_that_is_not_utf8_is_written(own_release, tmp_path):
    path = os.fsencode(image(own_release).parent) + b'/caf\xe9.png'
    try:
        open(path, 'wb').close()
    except OSError:
        pytest.skip('this file system accepts only UTF-8 names')
    audit(own_release, tmp_path / 'out')
    assert r'images/he/caf\xe9.png' in {f['subject'] for f in findings(tmp_path / 'out.audit.json')}


def test_an_audit_that_cannot_be_written_is_one_sentence(own_release, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(IgniteError, match='cannot be created') as caught:
        audit(own_release, tmp_path / 'file' / 'out')
    assert len(str(caught.value).splitlines()) == 1
    audit(own_release, tmp_path / 'new' / 'folder' / 'out')
    assert (tmp_path / 'new' / 'folder' / 'out.audit.json').is_file()


def test_audit_takes_the_arguments_of_prepare(own_release, tmp_path):
    """As passed by the tool: no advice to use an option that is used, no context findings without context."""
    image(own_release, f'{ONE}_with_context').unlink()
    mask(own_release, TWO).unlink()
    arguments = ('--release', own_release, '--out', tmp_path / 'out', '--audit-only')
    assert tool('prepare_ignite', *arguments) == 2
    assert tool('prepare_ignite', *arguments, '--drop-faulty', '--no-context') == 0
    kinds = {f['kind'] for f in findings(tmp_path / 'out.audit.json')}
    assert 'mask-missing' in kinds and 'context-missing' not in kinds
    (own_release / 'he_label_map.json').unlink()
    with pytest.raises(IgniteError) as caught:
        audit(own_release, tmp_path / 'out', drop_faulty=True)
    assert '--drop-faulty' not in str(caught.value)


def test_the_audit_is_written_if_too_few_patients_remain(own_release, tmp_path):
    with pytest.raises(IgniteError, match='three'):
        prepare(own_release, tmp_path / 'out', exclude=[ONE, TWO])
    assert [f['subject'] for f in findings(tmp_path / 'out.audit.json') if f['kind'] == 'excluded'] == [ONE, TWO]
    assert not (tmp_path / 'out').exists()


def test_dropping_a_row_with_a_path_as_name_removes_nothing_there(own_release, tmp_path):
    precious = tmp_path / 'precious.npy'
    precious.write_text('mine')
    put('name', str(precious.with_suffix('')))(own_release)
    prepare(own_release, tmp_path / 'out', drop_faulty=True)
    assert precious.read_text() == 'mine'


def test_faulty_rois_can_be_skipped(own_release, tmp_path):
    image(own_release).unlink()
    for number, arguments in enumerate((dict(exclude=[ONE]), dict(drop_faulty=True))):
        index = prepare(own_release, tmp_path / f'out{number}', **arguments)
        assert [r['name'] for r in index['rois']] == [f'patient{n}_he_roi1' for n in (2, 3, 4)]
        assert index['left_out'] == [ONE]
        assert not [p for p in (tmp_path / f'out{number}').rglob('*') if ONE in p.name]
        names = {n for parts in index['splits'].values() for part in parts.values() for n in part}
        assert ONE not in names


def test_dropping_resolves_a_leaking_image_and_leaves_no_array(own_release, tmp_path):
    """The fault is found only after its arrays were written."""
    rows = list(csv.DictReader((own_release / OVERVIEW).open()))
    copy_roi(own_release, ONE, 'patient5_he_roi1')
    with (own_release / OVERVIEW).open('a', newline='') as stream:
        row = dict(rows[0], name='patient5_he_roi1', patient_id='5', roi_id='1')
        csv.DictWriter(stream, COLUMNS).writerow(row)
    index = prepare(own_release, tmp_path / 'out', drop_faulty=True)
    assert index['left_out'] == [ONE, 'patient5_he_roi1'] and len(index['rois']) == 3
    assert {p.stem.removesuffix('_with_context') for p in (tmp_path / 'out').rglob('*.npy')} == {
        r['name'] for r in index['rois']
    }


def test_faults_of_the_whole_release_cannot_be_dropped(own_release, tmp_path):
    (own_release / 'he_label_map.json').unlink()
    with pytest.raises(IgniteError, match='he_label_map.json'):
        prepare(own_release, tmp_path / 'out', drop_faulty=True)


def test_excluding_an_unknown_roi_is_an_error(own_release, tmp_path):
    with pytest.raises(IgniteError, match='patient99_he_roi1'):
        prepare(own_release, tmp_path / 'out', exclude=['patient99_he_roi1'])


@pytest.mark.parametrize('where', ['nowhere', ''])
def test_wrong_or_empty_release(tmp_path, where):
    with pytest.raises(IgniteError, match=str(tmp_path)):
        read_overview(tmp_path / where)


def test_gzipped_overview_with_bom_reads_the_same(own_release):
    plain = read_overview(own_release)
    path = own_release / OVERVIEW
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf' + path.read_bytes()))
    assert read_overview(own_release).records == plain.records


def test_palette_masks_give_indices_not_luminance():
    indices = np.random.default_rng().integers(0, 17, (30, 30)).astype(np.uint8)
    stream = io.BytesIO()
    palette(Image.fromarray(indices)).save(stream, 'PNG')
    content = stream.getvalue()
    np.testing.assert_array_equal(decode_mask(decode(content, check_png(content))).labels, decode_mask(indices).labels)


def png(seed, mode='RGB'):
    pixels = np.random.default_rng(seed).integers(0, 256, (11, 13, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, 'PNG')
    return stream.getvalue()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(['RGB', 'L', 'P']), st.data())
def test_no_damaged_byte_goes_unnoticed(seed, mode, data):
    """After any changed, lost or truncated byte: an error, or unchanged pixels."""
    content = png(seed, mode)
    whole = decode(content, check_png(content))
    at = data.draw(st.integers(0, len(content) - 1))
    damaged = data.draw(
        st.sampled_from([content[:at], content[:at] + content[at + 1 :], content[:at] + b'\x07' + content[at + 1 :]])
    )
    try:
        pixels = decode(damaged, check_png(damaged))
    except DamagedPicture:
        return
    np.testing.assert_array_equal(pixels, whole)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=20))
def test_any_table_is_read_or_refused(tmp_path_factory, noise, tail):
    release = tmp_path_factory.mktemp('r')
    for task in ('images', 'annotations'):
        (release / task / 'he').mkdir(parents=True)
        (release / task / 'he' / 'x.png').touch()
    (release / OVERVIEW).write_bytes(','.join(COLUMNS).encode() + b'\nx,he_tissue_segmentation,' + noise + b'\n' + tail)
    overview = read_overview(release)
    assert all(r.name and (r.area_mm2 is None or 0 < r.area_mm2 < float('inf')) for r in overview.records)
    assert overview.findings  # there is no label map


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(0, 30), st.integers(0, 2), st.integers(0, 2))
def test_an_roi_is_found_in_its_context(seed, y, x, taller, wider):
    """Including context masks up to two px larger, as for patient1_he_roi1 of the release."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 16, (6, 7)).astype(np.uint8)
    labels = np.kron(blocks, np.ones((12, 12), np.uint8))
    large = np.pad(labels, ((0, taller), (0, wider)), mode='edge')
    around = np.full((labels.shape[0] + 40, labels.shape[1] + 40), 255, np.uint8)
    around[y : y + large.shape[0], x : x + large.shape[1]] = large
    origin, fault = locate(labels, around)
    assert fault == '' and abs(origin[0] - y) <= taller and abs(origin[1] - x) <= wider
    other = rng.permutation(16).astype(np.uint8)[np.minimum(around, 15)]
    if (other[around < 16] != around[around < 16]).mean() > 0.5:
        assert locate(labels, np.where(around == 255, 255, other).astype(np.uint8))[0] is None
