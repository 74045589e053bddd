"""Pixels of images and masks are used as stored, whatever their EXIF orientation and colour type."""

import io

import numpy as np
import pytest
from PIL import Image

from mmseg_ignite.datasets.prepared import image_path, label_path
from mmseg_ignite.images.png import DamagedPicture, check_png, exif_orientation
from mmseg_ignite.labels import encode_mask
from mmseg_ignite.preparation import prepare, read_index
from mmseg_ignite.preparation.pictures import read_image, read_mask

SHAPE = 40, 56


def saved(picture, orientation, form='PNG', **options):
    exif = Image.Exif()
    exif[0x112] = orientation
    stream = io.BytesIO()
    picture.save(stream, form, exif=exif, **options)
    return stream.getvalue()


def colours(mode):
    """Return an asymmetric image that every colour mode can store, and its RGB values."""
    values = np.random.default_rng().integers(0, 4, (*SHAPE, 3)).astype(np.uint8) * 80
    picture = Image.fromarray(values)
    if mode == 'P':
        picture = picture.quantize(64)
        values = np.array(picture.convert('RGB'))
    elif mode == 'RGBA':
        picture.putalpha(255)
    return picture, values


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
def test_images_are_read_as_stored(mode, orientation):
    picture, values = colours(mode)
    found = {}
    image = read_image(saved(picture, orientation), found.__setitem__)
    np.testing.assert_array_equal(image, values)
    assert ('picture-turned' in found) == (orientation != 1)
    assert orientation == 1 or str(orientation) in found['picture-turned']


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('mode', ['L', 'P'])
@pytest.mark.parametrize('encoding', ['direct', 'complement'])
def test_masks_are_read_as_stored(mode, orientation, encoding):
    labels = np.repeat(np.repeat(np.random.default_rng().integers(0, 16, (5, 7)), 8, 0), 8, 1).astype(np.uint8)
    picture = Image.fromarray(encode_mask(labels, encoding))
    if mode == 'P':
        picture = Image.fromarray(np.array(picture), 'P')
        picture.putpalette(np.random.default_rng().integers(0, 256, 768).astype(np.uint8).tobytes())
    found = {}
    mask = read_mask(saved(picture, orientation), found.__setitem__)
    np.testing.assert_array_equal(mask.labels, labels)
    assert ('picture-turned' in found) == (orientation != 1)


@pytest.mark.parametrize('orientation', [1, 6])
def test_a_jpeg_is_read_as_stored_too(orientation):
    values = np.zeros((*SHAPE, 3), np.uint8)
    values[:8, :16] = 255
    found = {}
    image = read_image(saved(Image.fromarray(values), orientation, 'JPEG', quality=95), found.__setitem__)
    assert image.shape == values.shape and np.abs(image.astype(int) - values).max() < 12
    assert ('picture-turned' in found) == (orientation != 1) and 'image-lossy' in found


def test_image_and_mask_of_a_prepared_roi_match_whatever_their_orientations(own_release, tmp_path):
    """A palette image with an orientation and a mask without one, and vice versa."""
    plain = prepare(own_release, tmp_path / 'plain')['rois']
    for number, task in enumerate(('images', 'annotations')):
        path = own_release / task / 'he' / f'{plain[number]["name"]}.png'
        with Image.open(path) as picture:
            changed = picture.quantize(256) if task == 'images' else picture.copy()
        expected = np.array(changed.convert('RGB'))
        path.write_bytes(saved(changed, 6))
        index = prepare(own_release, tmp_path / 'turned')
        name, kinds = plain[number]['name'], [f['kind'] for f in index['rois'][number]['findings']]
        assert 'picture-turned' in kinds
        if task == 'images':
            np.testing.assert_array_equal(np.load(image_path(tmp_path / 'turned', name)), expected)
        np.testing.assert_array_equal(*(np.load(label_path(tmp_path / f, name)) for f in ('plain', 'turned')))


def test_files_that_passed_an_older_audit_are_read_again(own_release, tmp_path, monkeypatch):
    from mmseg_ignite.preparation import prepare as package_prepare

    prepare(own_release, tmp_path / 'out')
    assert all(f['kind'] != 'picture-turned' for r in read_index(tmp_path / 'out')['rois'] for f in r['findings'])
    monkeypatch.setitem(package_prepare.__globals__, 'AUDIT_RULES', -1)
    assert package_prepare.__globals__['_known'](tmp_path / 'out', None) == {}


@pytest.mark.parametrize('exif', [b'', b'nonsense', b'II*\0\xff\xff\xff\xff', b'Exif\0\0MM\0*'])
def test_unreadable_exif_has_no_orientation(exif):
    assert exif_orientation(exif) == 1


def test_single_transparent_colours_are_recognised():
    """RGB PNGs with a tRNS chunk are refused if a pixel has that colour, and opaque otherwise."""
    values = np.random.default_rng(0).integers(1, 200, (*SHAPE, 3)).astype(np.uint8)
    for first, kind in ((values[0, 0], 'image-format'), ((255, 255, 255), 'image-opaque-alpha')):
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, 'PNG', transparency=tuple(int(v) for v in first))
        assert check_png(stream.getvalue()).transparent
        found = {}
        image = read_image(stream.getvalue(), found.__setitem__)
        assert kind in found
        if image is not None:
            np.testing.assert_array_equal(image, values)


def test_a_damaged_jpeg_is_refused():
    content = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8)), 1, 'JPEG')
    for damaged in (content[:-2], content[: len(content) // 2], content[:4] + b'\xff\xd9'):
        with pytest.raises(DamagedPicture, match='JPEG'):
            read_image(damaged, lambda *_: None)
