"""GeoJSON follows QuPath's rules, and the checker finds files that break each of them."""

import copy
import gzip
import json
import uuid
from fractions import Fraction

import cv2
import numpy as np
import pytest
import shapely
from PIL import Image, ImageDraw

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import CLASSES, PALETTE
from mmseg_ignite.regions.geojson import AREA, SHARE, labels_to_geojson, write_geojson
from mmseg_ignite.regions.qupath import qupath_faults, write_classes
from mmseg_ignite.slides.raster import DiskRaster


def random_labels(rng, side=None, glass=0.3):
    """Return smooth random labels with noise, lines and touching corners in places."""
    shape = (side, side) if side else tuple(rng.integers(20, 250, 2))
    step = int(rng.integers(8, 30))
    fields = [rng.standard_normal([s // step + 3 for s in shape]).astype(np.float32) for _ in range(8)]
    fields = [
        cv2.resize(f, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)[: shape[0], : shape[1]] for f in fields
    ]
    labels = rng.permutation(16)[:7].astype(np.uint8)[np.argmax(fields[:7], axis=0)]
    labels[fields[7] < np.quantile(fields[7], glass)] = 0
    top, left = (int(rng.integers(0, s)) for s in shape)
    patch = labels[top : top + 12, left : left + 12]
    patch[:] = rng.integers(0, 4, patch.shape)
    labels[:, left] = rng.integers(0, 16)
    return labels


def polygons_of(content):
    return np.array([shapely.geometry.shape(feature['geometry']) for feature in content['features']])


def classes_of(content):
    return [CLASSES.index(feature['properties']['classification']['name']) for feature in content['features']]


def areas(kinds, values):
    return np.bincount(kinds, values, 16)


@pytest.fixture(scope='module')
def content():
    labels = np.zeros((60, 60), np.uint8)
    labels[10:40, 10:50], labels[15:30, 20:30], labels[50:55, 2:9] = 1, 3, 1
    return labels_to_geojson(labels, 0.5)


@pytest.mark.parametrize('downsample', [1, 2, 4.0003, 1.9986, Fraction(8, 3), 0.5])
def test_random_labels_follow_the_rules_and_keep_areas(downsample):
    rng = np.random.default_rng()
    for tolerance in (0, 1.0, 4.0):
        labels = random_labels(rng)
        found = labels_to_geojson(labels, 0.5, downsample=downsample, tolerance_um=tolerance, offset=(-30.123, 7.5))
        assert qupath_faults(found) == []
        assert qupath_faults(json.loads(json.dumps(found, allow_nan=False))) == []
        polygons, kinds, counts = polygons_of(found), classes_of(found), np.bincount(labels.reshape(-1), minlength=16)
        outlined = shapely.area(polygons) / float(downsample) ** 2
        assert outlined.sum() == pytest.approx(shapely.union_all(polygons).area / float(downsample) ** 2, rel=1e-3)
        rounded = areas(kinds, shapely.length(polygons)) * 0.0071 / float(downsample) ** 2  # on the grid of 0.01 px
        change = np.abs(areas(kinds, outlined) - counts)[1:]
        assert (change <= (0.01 * counts[1:] if tolerance else 0) + rounded[1:] + 1e-6).all()
        measured = [feature['properties']['measurements'] for feature in found['features']]
        np.testing.assert_allclose(areas(kinds, [m[AREA] for m in measured])[1:], counts[1:] / 4)
        assert not measured or sum(m[SHARE] for m in measured) == pytest.approx(1, abs=1e-6)
        assert shapely.coverage_is_valid(polygons)


def test_coordinates_are_pixel_edges_times_downsample_plus_offset():
    labels = np.zeros((40, 50), np.uint8)
    labels[3:5, 10:14] = 2
    [feature] = labels_to_geojson(labels, 0.5, downsample=4.0003, offset=(100, 1000.5))['features']
    box = shapely.box(1000.5 + 40.003, 100 + 12.0009, 1000.5 + 56.0042, 100 + 20.0015)
    assert shapely.geometry.shape(feature['geometry']).normalize().equals_exact(box.normalize(), 0.0051)
    assert feature['properties']['measurements'] == {AREA: 2.0, SHARE: 1.0}
    assert feature['properties']['classification'] == {'name': CLASSES[2], 'color': list(PALETTE[2])}
    assert feature['properties']['objectType'] == 'annotation' and feature['properties']['isLocked'] is False


def test_drawn_polygons_give_the_labels_back():
    """Draw each unsimplified polygon, enlarged threefold, with another library; the centres of pixels have the labels."""
    rng = np.random.default_rng()
    for _ in range(5):
        labels = random_labels(rng)
        found = labels_to_geojson(labels, 0.5, downsample=3, tolerance_um=0)
        drawn = np.zeros(labels.shape, np.uint8)
        for feature, label in zip(found['features'], classes_of(found)):
            image = Image.new('1', (3 * labels.shape[1] + 1, 3 * labels.shape[0] + 1))
            pen = ImageDraw.Draw(image)
            for ring, fill in zip(feature['geometry']['coordinates'], [1] + [0] * 1000):
                pen.polygon([tuple(point) for point in ring], fill=fill)
            inside = np.asarray(image)[1:-1:3, 1:-1:3]
            assert not drawn[inside].any()
            drawn[inside] = label
        np.testing.assert_array_equal(drawn, labels)


def test_background_is_outlined_if_asked_for():
    labels = random_labels(np.random.default_rng(), 80)
    found = labels_to_geojson(labels, 0.5, background=True)
    polygons, kinds = polygons_of(found), classes_of(found)
    assert 0 in kinds and qupath_faults(found) == []
    assert shapely.area(polygons).sum() == pytest.approx(80 * 80, rel=1e-6)
    assert shapely.union_all(polygons).area == pytest.approx(80 * 80, rel=1e-6)
    assert all((SHARE in f['properties']['measurements']) == (k > 0) for f, k in zip(found['features'], kinds))
    assert 0 not in classes_of(labels_to_geojson(labels, 0.5))


@pytest.mark.parametrize('shape', [(0, 0), (0, 3), (3, 0), (1, 1), (700, 30)])
def test_glass_gives_an_empty_collection(shape, tmp_path):
    assert labels_to_geojson(np.zeros(shape, np.uint8), 0.5) == {'type': 'FeatureCollection', 'features': []}
    write_geojson(tmp_path / 'a.geojson', np.zeros(shape, np.uint8), 0.5)
    assert qupath_faults(tmp_path / 'a.geojson') == []
    glass = labels_to_geojson(np.zeros(shape, np.uint8), 0.5, background=True)['features']
    assert len(glass) == (0 not in shape)


def test_files_hold_the_content_and_are_the_same_again(tmp_path):
    labels = random_labels(np.random.default_rng(), 200)
    settings = dict(um_per_px=0.5, downsample=4.0003, name='slide.svs')
    expected = labels_to_geojson(labels, **settings)
    write_geojson(tmp_path / 'a.geojson', labels, **settings)
    with DiskRaster(tmp_path / 'labels.raw', labels.shape) as raster:
        raster[:] = labels
        write_geojson(tmp_path / 'b.geojson', raster, **settings)
        for name in 'cd':
            write_geojson(tmp_path / f'{name}.geojson.gz', raster, **settings)
    text = (tmp_path / 'a.geojson').read_bytes()
    assert json.loads(text) == expected and b'.0,' not in text and b'.0]' not in text
    assert (tmp_path / 'b.geojson').read_bytes() == text
    assert (tmp_path / 'c.geojson.gz').read_bytes() == (tmp_path / 'd.geojson.gz').read_bytes()
    assert gzip.decompress((tmp_path / 'c.geojson.gz').read_bytes()) == text
    assert qupath_faults(tmp_path / 'a.geojson') == qupath_faults(tmp_path / 'c.geojson.gz') == []
    other = labels_to_geojson(labels, **{**settings, 'name': 'other.svs'})
    assert not {f['id'] for f in expected['features']} & {f['id'] for f in other['features']}


def test_names_of_classes_are_written_as_they_are(tmp_path):
    names = ['Glass', 'Grade 2.0, pale']
    write_geojson(tmp_path / 'a.geojson', np.ones((3, 4), np.uint8), 0.5, classes=names, palette=[(0, 0, 0), (9, 9, 9)])
    (feature,) = json.loads((tmp_path / 'a.geojson').read_bytes())['features']
    assert feature['properties']['classification']['name'] == names[1]


def test_existing_files_stay_unless_overwritten(tmp_path):
    path, labels = tmp_path / 'a.geojson', np.ones((4, 4), np.uint8)
    path.write_text('mine')
    with pytest.raises(IgniteError, match='exists and is kept'):
        write_geojson(path, labels, 0.5)
    assert path.read_text() == 'mine'
    write_geojson(path, labels, 0.5, overwrite=True)
    assert qupath_faults(path) == []


def test_a_failure_leaves_nothing_behind(tmp_path):
    labels = np.ones((600, 8), np.uint8)

    class Broken(np.ndarray):
        reads = 0

        def __getitem__(self, index):
            Broken.reads += 1
            if Broken.reads > 3:
                raise OSError(5, 'broken disk')
            return super().__getitem__(index)

    with pytest.raises(IgniteError, match='broken disk'):
        write_geojson(tmp_path / 'a.geojson', labels.view(Broken), 0.5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'settings, part',
    [
        (dict(um_per_px=0), 'um_per_px is 0'),
        (dict(um_per_px=None), 'um_per_px is None'),
        (dict(downsample=0.01), 'downsample is 0.01; a number of at least 0.1'),
        (dict(downsample=float('nan')), 'downsample is nan'),
        (dict(tolerance_um=-1), 'tolerance_um is -1'),
        (dict(offset=(0, float('inf'))), 'offset is inf'),
        (dict(object_type='cell'), "object_type is 'cell'; one of annotation, detection"),
        (dict(classes=('a', 'b: c'), palette=((0, 0, 0),) * 2), "has a ':'"),
        (dict(classes=('a', ' '), palette=((0, 0, 0),) * 2), 'is blank'),
        (dict(classes=('a', 'b\nc'), palette=((0, 0, 0),) * 2), 'has a line break'),
        (dict(classes=('a', 'b*'), palette=((0, 0, 0),) * 2), "ends in '*'"),
        (dict(classes=('a', 'a'), palette=((0, 0, 0),) * 2), 'occurs twice'),
        (dict(classes=('a', 'b'), palette=((0, 0, 256),) * 2), 'colour (R, G, B)'),
        (dict(path='labels.zip'), 'QuPath opens .geojson'),
    ],
)
def test_wrong_settings_are_refused(settings, part):
    with pytest.raises(IgniteError) as error:
        labels_to_geojson(np.ones((4, 4), np.uint8), **{'um_per_px': 0.5, **settings})
    assert part in str(error.value)


def test_classes_have_signed_colours(tmp_path):
    write_classes(tmp_path / 'classes.json')
    known = json.loads((tmp_path / 'classes.json').read_text(encoding='utf-8'))
    assert list(known) == ['pathClasses']
    for entry, name, colour in zip(known['pathClasses'], CLASSES, PALETTE, strict=True):
        assert entry['name'] == name and -(2**31) <= entry['color'] < 0
        assert (entry['color'] % 2**32).to_bytes(4, 'big') == bytes([255, *colour])
    assert known['pathClasses'][0]['color'] == -1  # white
    write_classes(tmp_path / 'classes.json')  # the same content is not an error
    (tmp_path / 'classes.json').write_text('{}')
    with pytest.raises(IgniteError, match='other classes'):
        write_classes(tmp_path / 'classes.json')
    write_classes(tmp_path / 'classes.json', overwrite=True)
    assert json.loads((tmp_path / 'classes.json').read_text(encoding='utf-8')) == known


def _set(*keys):
    *path, last, value = keys

    def change(content):
        part = content
        for key in path:
            part = part[key]
        part[last] = value

    return change


FEATURE = ('features', 0)
PROPERTIES = (*FEATURE, 'properties')
RING = (*FEATURE, 'geometry', 'coordinates')
SQUARE = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
NOTCH = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 6], [8.999, 5], [0, 4], [0, 0]]


@pytest.mark.parametrize(
    'change, part',
    [
        (_set('type', 'Features'), 'not a FeatureCollection'),
        (_set('features', {}), 'no list of features'),
        (_set('features', 0, 'feature'), 'not a Feature'),
        (_set(*FEATURE, 'id', 'region-1'), 'not a UUID'),
        (_set(*FEATURE, 'id', None), 'not a UUID'),
        (lambda content: content['features'][1].update(id=content['features'][0]['id'].upper()), 'occurs twice'),
        (_set(*FEATURE, 'geometry', None), 'Polygon or MultiPolygon was expected'),
        (_set(*FEATURE, 'geometry', {'type': 'LineString', 'coordinates': SQUARE}), "the geometry is 'LineString'"),
        (_set(*FEATURE, 'geometry', {'type': 'MultiPolygon', 'coordinates': [[SQUARE]]}), 'has one part'),
        (_set(*RING[:-1], 'coordinates', []), 'no rings'),
        (_set(*RING, 0, SQUARE[:3]), '3 positions'),
        (_set(*RING, 0, SQUARE[:-1]), 'not closed'),
        (_set(*RING, 0, [[0, 0], [float('nan'), 0], [9, 9], [0, 0]]), 'finite numbers'),
        (_set(*RING, 0, [[0, 0, 0], [9, 0, 0], [9, 9, 0], [0, 0, 0]]), 'two finite numbers'),
        (_set(*RING, 0, [[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]), 'not valid (Self-intersection'),
        (_set(*RING[:-1], 'coordinates', [SQUARE, [[20, 20], [21, 20], [21, 21], [20, 20]]]), 'not valid (Hole lies'),
        (_set(*RING[:-1], 'coordinates', [[[0, 0], [0.001, 0], [0.001, 0.001], [0, 0]]]), 'vanishes'),
        (_set(*RING[:-1], 'coordinates', [NOTCH]), 'falls into 2 parts'),
        (_set(*FEATURE, 'properties', None), 'no properties'),
        (_set(*PROPERTIES, 'objectType', 'cell'), "objectType is 'cell'"),
        (_set(*PROPERTIES, 'classification', 'Stroma'), 'name and color'),
        (_set(*PROPERTIES, 'classification', {'name': 'Stroma'}), 'name and color'),
        (_set(*PROPERTIES, 'classification', {'name': 'Stroma', 'color': -1}), 'three integers'),
        (_set(*PROPERTIES, 'classification', 'name', 'Tumor: positive'), "has a ':'"),
        (_set(*PROPERTIES, 'classification', 'name', ' '), 'blank'),
        (_set(*PROPERTIES, 'classification', 'name', 'Stroma*'), "ends in '*'"),
        (_set(*PROPERTIES, 'measurements', [1]), 'measurements'),
        (_set(*PROPERTIES, 'measurements', {'Area': '1'}), 'measurements'),
        (_set(*PROPERTIES, 'metadata', {'a': [1]}), 'metadata'),
        (_set(*PROPERTIES, 'isLocked', 0), 'isLocked'),
        (_set(*PROPERTIES, 'isEllipse', False), 'isEllipse'),
    ],
)
def test_checker_finds_each_fault(content, change, part):
    assert qupath_faults(content) == []
    broken = copy.deepcopy(content)
    change(broken)
    faults = qupath_faults(broken)
    assert len(faults) == 1 and part in faults[0], faults


@pytest.mark.parametrize(
    'name, data', [('a.zip', b'{}'), ('a.txt', b'{}'), ('a.geojson', b'{'), ('a.json', b'\xff'), ('a.geojson.gz', b'x')]
)
def test_checker_finds_wrong_files(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert len(qupath_faults(tmp_path / name)) == 1
    assert len(qupath_faults(tmp_path / 'missing.json')) == 1


def test_checker_refuses_nan_in_a_file_and_stops_at_its_limit(tmp_path, content):
    (tmp_path / 'a.json').write_text(json.dumps({**content, 'x': float('nan')}))
    assert 'NaN' in qupath_faults(tmp_path / 'a.json')[0]
    many = {'type': 'FeatureCollection', 'features': [None] * 100}
    assert len(qupath_faults(many, limit=7)) == 7


def test_ids_are_uuids_of_the_input(content):
    ids = [uuid.UUID(feature['id']) for feature in content['features']]
    assert len(set(ids)) == len(ids) == 3 and {i.version for i in ids} == {5}
