"""Pyramidal TIFF files: what other programs read of them, and that they are whole, small and always the same bytes."""

import resource
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.files import is_ours
from mmseg_ignite.labels import CLASSES, NUM_CLASSES, PALETTE
from mmseg_ignite.slides.pyramid import CLASSES_NAMESPACE, level_sizes, write_label_pyramid, write_map_pyramid
from mmseg_ignite.slides.raster import DiskRaster

SHAPES = [(1, 1), (511, 512), (512, 513), (513, 511), (1500, 700), (64, 2049)]
OME = {'': 'http://www.openmicroscopy.org/Schemas/OME/2016-06'}


def _labels(shape: tuple[int, int]) -> np.ndarray:
    """Return random regions, with glass in the left third."""
    rng, side = np.random.default_rng(), 7
    small = rng.integers(0, NUM_CLASSES, [-(-n // side) for n in shape], np.uint8)
    labels = np.kron(small, np.ones((side, side), np.uint8))[: shape[0], : shape[1]]
    labels[:, : shape[1] // 3] = 0
    return labels


@pytest.mark.parametrize('shape', SHAPES)
def test_every_level_is_the_raster_sliced(tmp_path, shape):
    labels, path, rows = _labels(shape), tmp_path / 'a.ome.tif', []
    with DiskRaster(tmp_path / 'r.raw', shape) as raster:
        raster[:] = labels
        write_label_pyramid(path, raster, 0.5, on_rows=rows.append)
    assert sum(rows) == shape[0]
    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[0].levels
        assert tiff.is_ome and tiff.is_bigtiff and len(tiff.series) == 1
        assert [level.shape for level in levels] == level_sizes(shape) and max(levels[-1].shape) <= 512
        for k, level in enumerate(levels):
            np.testing.assert_array_equal(level.asarray(), labels[:: 2**k, :: 2**k] + 1)
            page = level.pages[0]
            assert page.is_tiled and page.tile == (512, 512) and page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
            assert page.is_reduced == (k > 0)


@pytest.mark.parametrize('shape', SHAPES)
def test_openslide_and_pillow_show_the_official_colours(tmp_path, shape):
    labels, path = _labels(shape), tmp_path / 'a.ome.tif'
    write_label_pyramid(path, labels, 0.252)
    colours = np.array(PALETTE, np.uint8)[labels]
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == shape[::-1] and slide.properties['openslide.level[0].tile-width'] == '512'
        assert float(slide.properties['openslide.mpp-x']) == pytest.approx(0.252)
        np.testing.assert_array_equal(np.array(slide.read_region((0, 0), 0, slide.dimensions))[..., :3], colours)
    with Image.open(path) as picture:
        assert picture.mode == 'P'
        np.testing.assert_array_equal(np.array(picture), labels + 1)
        np.testing.assert_array_equal(np.array(picture.convert('RGB')), colours)


def test_ome_xml_states_size_resolution_and_classes(tmp_path):
    write_label_pyramid(tmp_path / 'a.ome.tif', _labels((30, 40)), 0.4991, name='slide <1> & "two" µ\x00')
    with tifffile.TiffFile(tmp_path / 'a.ome.tif') as tiff:
        root = ElementTree.fromstring(tiff.ome_metadata)
    assert root.find('Image', OME).get('Name') == 'slide <1> & "two" µ '
    pixels = root.find('Image/Pixels', OME).attrib
    assert (pixels['SizeX'], pixels['SizeY'], pixels['SizeC'], pixels['Type']) == ('40', '30', '1', 'uint8')
    assert float(pixels['PhysicalSizeX']) == float(pixels['PhysicalSizeY']) == 0.4991
    annotation = root.find('StructuredAnnotations/MapAnnotation', OME)
    assert annotation.get('Namespace') == CLASSES_NAMESPACE
    assert root.find('Image/AnnotationRef', OME).get('ID') == annotation.get('ID')
    names = {int(entry.get('K')): entry.text for entry in annotation.iterfind('.//M', OME)}
    assert names == {i + 1: name for i, name in enumerate(CLASSES)}


def _mean_level(level: np.ndarray) -> np.ndarray:
    """Reference: the mean of up to 2 x 2 pixels, halves up."""
    out = np.empty([-(-side // 2) for side in level.shape], np.uint8)
    for y, x in np.ndindex(out.shape):
        part = level[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel().tolist()
        out[y, x] = int(sum(part) / len(part) + 0.5)
    return out


@pytest.mark.parametrize('shape', [(1, 1), (513, 130), (1027, 71)])
def test_maps_have_channels_and_levels_of_area_means(tmp_path, shape):
    planes = np.random.default_rng().integers(0, 256, (3, *shape), np.uint8)
    planes[1] = 255
    names, path = ['Tumor "epithelium"', 'b', 'c & d'], tmp_path / 'm.ome.tif'
    write_map_pyramid(
        path, planes, names, 0.5, description='probability < 1', colours=[(1, 2, 3), (255, 0, 0), (0, 9, 0)]
    )
    with tifffile.TiffFile(path) as tiff:
        series, root = tiff.series[0], ElementTree.fromstring(tiff.ome_metadata)
        levels = [level.asarray().reshape(3, *size) for level, size in zip(series.levels, level_sizes(shape))]
    assert series.axes == 'CYX' and len(levels) == len(series.levels)
    np.testing.assert_array_equal(levels[0], planes)
    for before, level in zip(levels, levels[1:]):
        np.testing.assert_array_equal(level, [_mean_level(plane) for plane in before])
    channels = root.findall('Image/Pixels/Channel', OME)
    assert [channel.get('Name') for channel in channels] == names
    assert [int(c.get('Color')) & 0xFFFFFFFF for c in channels] == [0x010203FF, 0xFF0000FF, 0x000900FF]
    assert root.findtext('Image/Description', namespaces=OME) == 'probability < 1'


def test_equal_rasters_give_equal_bytes(tmp_path):
    labels = _labels((700, 600))
    for folder in ('a', 'b'):
        write_label_pyramid(tmp_path / folder / 's.ome.tif', labels.copy(), 0.5)
    assert (tmp_path / 'a' / 's.ome.tif').read_bytes() == (tmp_path / 'b' / 's.ome.tif').read_bytes()


def test_glass_costs_almost_nothing(tmp_path):
    write_label_pyramid(tmp_path / 'a.ome.tif', np.zeros((5000, 7001), np.uint8), 0.5)
    assert (tmp_path / 'a.ome.tif').stat().st_size < 150_000  # of 35 MB


@pytest.mark.parametrize(
    'raster, um_per_px, found',
    [
        (np.full((600, 600), 16, np.uint8), 0.5, 'value 16'),
        (np.eye(1200, dtype=np.uint8) * 255, 0.5, 'value 255'),
        (np.zeros((4, 4), np.int32), 0.5, 'int32'),
        (np.zeros((4, 4, 1), np.uint8), 0.5, r'\(4, 4, 1\)'),
        (np.zeros((0, 4), np.uint8), 0.5, r'\(0, 4\)'),
        (np.zeros((4, 4), np.uint8), 0.0, '0.0 um/px'),
        (np.zeros((4, 4), np.uint8), float('nan'), 'nan um/px'),
    ],
)
def test_wrong_rasters_are_refused_and_leave_nothing(tmp_path, raster, um_per_px, found):
    with pytest.raises(IgniteError, match=found):
        write_label_pyramid(tmp_path / 'a.ome.tif', raster, um_per_px)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('names, colours', [(['a'], None), (['a', 'b'], [(0, 0, 0)]), ([], None)])
def test_channels_need_names(tmp_path, names, colours):
    planes = np.zeros((len(names) and 2, 4, 4), np.uint8)
    with pytest.raises(IgniteError, match=f'{len(names)} names'):
        write_map_pyramid(tmp_path / 'a.ome.tif', planes, names, 0.5, colours=colours)


def test_maps_of_different_sizes_are_refused(tmp_path):
    with pytest.raises(IgniteError, match=r'\(4, 5\)'):
        write_map_pyramid(tmp_path / 'a.tif', [np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)], 'ab', 0.5)


class _Failing:
    """A raster whose lower half cannot be read."""

    shape, dtype = (3000, 800), np.dtype(np.uint8)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, rows: slice) -> np.ndarray:
        if rows.start >= 1500:
            raise self.error
        return np.random.default_rng().integers(0, 16, (rows.stop - rows.start, 800), np.uint8)


@pytest.mark.parametrize(
    'error, raised', [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, 'full'), IgniteError)]
)
def test_a_failure_half_way_keeps_the_old_file_and_leaves_nothing(tmp_path, error, raised):
    path = tmp_path / 'a.ome.tif'
    write_label_pyramid(path, np.zeros((4, 4), np.uint8), 0.5)
    before = path.read_bytes()
    with pytest.raises(raised):
        write_label_pyramid(path, _Failing(error), 0.5)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    labels = np.random.default_rng().integers(0, 16, (2000, 2000), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(IgniteError, match='cannot be written'):
            write_label_pyramid(tmp_path / 'a.ome.tif', labels, 0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_own_files_are_replaced_and_changed_or_foreign_ones_kept(tmp_path):
    path, labels = tmp_path / 'a.ome.tif', _labels((1500, 1500))
    write_label_pyramid(path, labels, 0.5)
    assert is_ours(path)
    write_label_pyramid(path, labels, 0.25)  # replaces it
    content = path.read_bytes()
    for changed in (
        content[:-1],
        content + b'x',
        content[:100] + bytes([content[100] ^ 1]) + content[101:],
        b'',
        content[-60:],
    ):
        path.write_bytes(changed)
        assert not is_ours(path)
    tifffile.imwrite(path, labels)
    with pytest.raises(IgniteError, match='is kept'):
        write_label_pyramid(path, labels, 0.5)
