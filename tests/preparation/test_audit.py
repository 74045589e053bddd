"""Every fault of a release is found in one pass, named with its mend, and nothing wrong is published."""

import csv
import gzip
import io
import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import decode_mask
from mmseg_ignite.preparation import audit, prepare
from mmseg_ignite.preparation.findings import KINDS
from mmseg_ignite.preparation.png import DamagedPicture, check_png, decode
from mmseg_ignite.preparation.release import COLUMNS, OVERVIEW, read_overview
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
    """Change one data row of the overview, a dictionary."""
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
    """A PNG whose chunks are all right, with other pixel data."""
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk(b'IDAT', zlib.compress(pixels)) + chunk(b'IEND', b''))


def resave(path, change):
    """Save a picture anew after changing it as a Pillow image or array."""
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
    'field too few': (lambda r: edit(r / OVERVIEW, f'/annotations/he/{ONE}.png\n', '\n'), None),
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
    'area in um2': (put('area_mm2', '1440'), 'resolution-differs'),
    'shape is text': (put('shape', 'wide'), 'shape-malformed'),
    'shape lies': (put('shape', '(7, 9)'), 'shape-differs'),
    'unknown split': (put('split', 'holdout'), 'split-unknown'),
    'patient in both splits': (lambda r: rewrite(r, lambda row: row.update(patient_id='2', split='test')), 'official-leak'),
    'leaking folds': (lambda r: rewrite(r, lambda row: row.update(patient_id='2', validation_fold='fold4')), 'folds-leak'),
    'no label map': (lambda r: (r / 'he_label_map.json').unlink(), 'label-map-missing'),
    'label map no JSON': (lambda r: (r / 'he_label_map.json').write_text('{'), 'label-map-unreadable'),
    'other label map': (lambda r: edit(r / 'he_label_map.json', 'Stroma', 'Soma'), 'label-map-changed'),
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
    """An error publishes nothing and is in the audit beside; anything less is in the audit of the published folder."""
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
    if kind is not None:
        assert kind in {f['kind'] for f in found}
        of_kind = [f for f in found if f['kind'] == kind]
        assert all((f['severity'], f['mend']) == KINDS[kind] and f['detail'] and f['subject'] for f in of_kind)


def test_at_least_forty_kinds_of_damage_are_tried_and_every_kind_of_fault_occurs():
    assert len(DAMAGE) >= 40
    assert {kind for _, kind in DAMAGE.values() if kind} == set(KINDS) - {'excluded', 'roi-small'}


def test_all_faults_come_in_one_pass(own_release, tmp_path, capsys):
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


def test_faulty_rois_are_left_out_on_request(own_release, tmp_path):
    image(own_release).unlink()
    for number, arguments in enumerate((dict(exclude=[ONE]), dict(drop_faulty=True))):
        index = prepare(own_release, tmp_path / f'out{number}', **arguments)
        assert [r['name'] for r in index['rois']] == [f'patient{n}_he_roi1' for n in (2, 3, 4)]
        assert index['left_out'] == [ONE]
        assert not [p for p in (tmp_path / f'out{number}').rglob('*') if ONE in p.name]
        names = {n for parts in index['splits'].values() for part in parts.values() for n in part}
        assert ONE not in names


def test_dropping_cures_a_leaking_picture_and_leaves_no_array(own_release, tmp_path):
    """That it is faulty shows only after its arrays were written."""
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


def test_excluding_what_is_not_there_is_an_error(own_release, tmp_path):
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
def test_no_damage_of_the_bytes_goes_unnoticed(seed, mode, data):
    """Any changed, lost or cut byte: an error, or the very pixels that were stored."""
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
    (release / OVERVIEW).write_bytes(','.join(COLUMNS).encode() + b'\nx,he_tissue_segmentation,' + noise + b'\n' + tail)
    overview = read_overview(release)
    assert all(r.name and r.patient and 0 < r.area_mm2 < float('inf') for r in overview.records)
    assert overview.findings  # there is no label map


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(0, 30), st.integers(0, 2), st.integers(0, 2))
def test_an_roi_is_found_in_its_context(seed, y, x, taller, wider):
    """Also where the context mask is up to two px larger, as for patient1_he_roi1 of the release."""
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
