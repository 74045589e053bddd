"""Opening slides, their resolution and bounds, and views of them."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image, ImageCms
from slide_example import write_slide

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.slides import is_slide, open_slide, openslide_source
from mmseg_ignite.slides import view as view_module
from mmseg_ignite.slides.levels import Level, approximate, downsample, nearest_level
from mmseg_ignite.slides.view import SlideView

REAL = Path(__file__).parents[3] / 'shared' / 'data' / 'slides' / 'CMU-1-Small-Region.svs'


@pytest.fixture(scope='module')
def slides(tmp_path_factory):
    """One slide per layout, of odd size."""
    folder, size = tmp_path_factory.mktemp('slides'), (1203, 1607)
    paths = {
        layout: folder / name for layout, name in (('aperio', 'a.svs'), ('generic', 'g.tif'), ('ome', 'o.ome.tif'))
    }
    for layout, path in paths.items():
        write_slide(path, size, layout=layout, tissue_share=0.5)
    return paths


def _without_tiles(monkeypatch):
    monkeypatch.setattr(openslide_source.OpenSlideSource, '_same_pixels', lambda *_: False)


def _mean(pixels: np.ndarray, p: int, q: int, shape: tuple[int, int]) -> np.ndarray:
    """Reduce by area with the exact weights of overlapping intervals."""

    def weights(length: int, size: int) -> np.ndarray:
        edges, found = [Fraction(i * p, q) for i in range(size + 1)], np.zeros((size, length))
        for i in range(size):
            for j in range(int(edges[i]), min(length, -int(-edges[i + 1] // 1))):
                found[i, j] = min(edges[i + 1], j + 1) - max(edges[i], j)
        return found * q / p

    down, across = (weights(length, size) for length, size in zip(pixels.shape, shape))
    return np.einsum('yi,ijc,xj->yxc', down, pixels.astype(float), across, optimize=True)


@pytest.mark.parametrize('layout', ['aperio', 'generic', 'ome'])
def test_slide_states_its_geometry_and_gives_the_pixels_of_the_file(slides, layout):
    with open_slide(slides[layout]) as slide:
        assert (slide.size, slide.full_size, slide.offset) == ((1203, 1607), (1203, 1607), (0, 0))
        assert slide.um_per_px == 0.25 and not slide.notes and slide.icc is None
        assert [level.downsample for level in slide.levels] == [1, 4, 16]
        for number, level in enumerate(slide.levels):
            view = slide.at(0.25 * level.downsample)
            assert (view.level, view.downsample, view.um_per_px) == (number, level.downsample, 0.25 * level.downsample)
            expected = tifffile.imread(slides[layout], **({'level': number} if layout == 'ome' else {'key': number}))
            np.testing.assert_array_equal(view[:], expected[: view.shape[0], : view.shape[1]])
            assert view.missing_pixels == 0


@pytest.mark.parametrize('through_openslide', [False, True])
@pytest.mark.parametrize('target', [0.2, 0.25, 0.3, 0.47, 0.5, 0.83, 1.7, 6.0])
def test_a_pixel_does_not_depend_on_the_rectangle(slides, target, through_openslide, monkeypatch):
    if through_openslide:
        _without_tiles(monkeypatch)
    rng = np.random.default_rng()
    with open_slide(slides['aperio']) as slide, open_slide(slides['aperio']) as other:
        view, whole = slide.at(target), other.at(target)[:]
        assert whole.shape == view.shape and abs(view.um_per_px / target - 1) <= 0.0501
        for _ in range(12):
            (top, bottom), (left, right) = (sorted(rng.integers(0, side + 1, 2)) for side in view.shape[:2])
            np.testing.assert_array_equal(view[top:bottom, left:right], whole[top:bottom, left:right])


@pytest.mark.parametrize('target', [0.5, 0.36, 1.7])
def test_views_are_means_by_area(slides, target):
    with open_slide(slides['aperio']) as slide:
        view = slide.at(target)
        level = slide.at(0.25 * slide.levels[view.level].downsample)[:]
        ratio = Fraction(view.downsample / slide.levels[view.level].downsample).limit_denominator(16)
        size = (view.shape[0], view.shape[1])
        assert size == tuple(side // ratio for side in level.shape[:2])
        expected = _mean(level, ratio.numerator, ratio.denominator, size)
        assert np.abs(view[:] - expected).max() < 1.01


def test_enlarging_interpolates_without_shift(slides):
    with open_slide(slides['aperio']) as slide:
        view, level = slide.at(0.125), slide.at(0.25)[:]
        assert view.shape == (2 * 1203, 2 * 1607, 3) and view.um_per_px == 0.125
        for target, ratio in ((0.125, 0.5), (0.15, 0.6)):
            view = slide.at(target)
            expected = level.astype(float)
            for axis, side in enumerate(view.shape[:2]):
                places = (np.arange(side) + 0.5) * ratio - 0.5
                low = np.floor(places).astype(int)
                weight = (places - low).reshape([-1 if i == axis else 1 for i in range(3)])
                ends = (expected.take((low + step).clip(0, level.shape[axis] - 1), axis) for step in (0, 1))
                expected = sum(end * part for end, part in zip(ends, (1 - weight, weight)))
            assert np.abs(view[:] - expected).max() < 1.01
        with pytest.raises(IgniteError, match=r'has 0.25 um/px, and 0.1 um/px is needed'):
            slide.at(0.1)
        with pytest.raises(IgniteError, match='smaller than one pixel'):
            slide.at(1e4)


def test_threads_read_the_same_pixels(slides):
    with open_slide(slides['ome']) as slide, open_slide(slides['ome']) as other:
        view, whole = slide.at(0.5), other.at(0.5)[:]
        places = [(y, x) for y in range(0, 500, 90) for x in range(0, 700, 90)]
        with ThreadPoolExecutor(8) as pool:
            for (y, x), part in zip(
                places, pool.map(lambda place: view[place[0] :][:128, place[1] : place[1] + 128], places)
            ):
                np.testing.assert_array_equal(part, whole[y : y + 128, x : x + 128])


def test_downsamples_of_rounded_levels():
    rng = np.random.default_rng()
    for _ in range(300):
        full, factor = tuple(map(int, rng.integers(3000, 90000, 2))), int(rng.choice([2, 3, 4, 8, 16, 32]))
        rounded = rng.choice([np.floor, np.ceil])
        assert downsample(full, tuple(int(rounded(side / factor)) for side in full)) == factor
    assert downsample((3000, 4000), (750, 500)) is None
    assert downsample((30000, 40000), (14286, 19048)) == pytest.approx(2.1, abs=1e-3)


def test_ratios_and_levels():
    for ratio in np.random.default_rng().uniform(0.96, 40, 2000):
        found = approximate(ratio)
        whole = abs(ratio / round(ratio) - 1) <= 0.05
        assert (found == round(ratio)) if whole else (found.denominator <= 16 and abs(ratio / found - 1) < 0.0115)
    levels = [Level((1, 1), factor) for factor in (1.0, 4.0, 16.0)]
    assert [nearest_level(levels, 0.25, um) for um in (0.1, 0.25, 0.5, 0.94, 0.96, 1, 3, 4, 90)] == [
        0,
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
    ]


def test_view_counts_missing_tiles_once_and_shows_them_white(tmp_path, monkeypatch):
    monkeypatch.setattr(view_module, '_CACHE_BYTES', 0)
    write_slide(tmp_path / 'm.svs', (1000, 1000), missing=((1, 1), (1, 2)), tissue_share=1)
    write_slide(tmp_path / 'm.ome.tif', (1000, 1000), missing=((1, 1), (1, 2)), tissue_share=1, layout='ome')
    for path in (tmp_path / 'm.svs', tmp_path / 'm.ome.tif'):
        with open_slide(path) as slide:
            view = slide.at(0.25)
            assert view[0:50, 0:50].min() < 200 and view.missing_pixels == 0
            for _ in range(2):
                assert (view[260:500, 260:760] == 255).all()
                assert view[:].shape == (1000, 1000, 3) and view.missing_pixels == 2 * 256 * 256
            assert view[:256].min() < 200


class _Fake:
    """OpenSlide's object with other properties."""

    def __init__(self, slide, **properties):
        self._slide, self.properties = slide, {**slide.properties, **properties}

    def __getattr__(self, name):
        return getattr(self._slide, name)


def _with_properties(monkeypatch, **properties):
    original = openslide.OpenSlide

    class Opened:
        detect_format = staticmethod(original.detect_format)

        def __new__(cls, path):
            named = {name.replace('__', '.').replace('_', '-'): value for name, value in properties.items()}
            return _Fake(original(path), **named)

    monkeypatch.setattr(openslide, 'OpenSlide', Opened)
    _without_tiles(monkeypatch)


def test_bounds_crop_the_slide(slides, monkeypatch):
    whole = open_slide(slides['aperio']).at(0.25)[:]
    place = {f'openslide__bounds_{name}': value for name, value in (('x', '100'), ('y', '37'), ('width', '1200'))}
    _with_properties(monkeypatch, **place)
    with open_slide(slides['aperio']) as slide:
        assert slide.offset == (0, 0) and slide.size == (1203, 1607), 'three of four properties are no bounds'
    monkeypatch.undo()
    _with_properties(monkeypatch, **place, openslide__bounds_height='1001')
    with open_slide(slides['aperio']) as slide:
        assert (slide.offset, slide.size, slide.full_size) == ((37, 100), (1001, 1200), (1203, 1607))
        np.testing.assert_array_equal(slide.at(0.25)[:], whole[37:1038, 100:1300])
        view = slide.at(0.5)
        expected = whole[37:1037, 100:1300].reshape(500, 2, 600, 2, 3).mean((1, 3))
        assert view.shape == (500, 600, 3) and np.abs(view[:] - expected).max() <= 0.5
        assert slide.at(1.0).shape == (250, 300, 3)
        assert np.abs(slide.at(1.0)[:] - expected.reshape(250, 2, 300, 2, 3).mean((1, 3))).mean() < 4
        assert slide.thumbnail(120).shape == (100, 120, 3)
    monkeypatch.undo()
    _with_properties(monkeypatch, **place, openslide__bounds_height='1200')
    with pytest.raises(IgniteError, match='outside its 1203 x 1607 px'):
        open_slide(slides['aperio'])


def test_bounds_on_a_level_of_rounded_size_are_not_shifted(tmp_path, monkeypatch):
    write_slide(tmp_path / 's.svs', (3003, 4007), tissue_share=1, levels=(1, 4))
    with open_slide(tmp_path / 's.svs') as slide:
        whole = slide.at(1.0)[:].astype(int)
    _with_properties(
        monkeypatch,
        **{f'openslide__bounds_{k}': v for k, v in dict(y='2000', x='3000', height='800', width='800').items()},
    )
    with open_slide(tmp_path / 's.svs') as slide:  # OpenSlide counts 4.0035 px of level 0 per px of the level, not 4
        found = slide.at(1.0)[:]
    assert np.abs(found - whole[500:700, 750:950]).mean() < 3 < np.abs(found - whole[500:700, 751:951]).mean()


def test_missing_pixels_have_the_background_colour(tmp_path, monkeypatch):
    write_slide(tmp_path / 'm.svs', (600, 600), missing=((0, 0),), tissue_share=1)
    _with_properties(monkeypatch, openslide__background_color='D0E0F0')
    with open_slide(tmp_path / 'm.svs') as slide:
        assert (slide.at(0.25)[:256, :256] == (0xD0, 0xE0, 0xF0)).all()


@pytest.mark.parametrize(
    ('x', 'y', 'message'),
    [
        ('0', '0', r'states 0 x 0 um/px'),
        ('nan', '0.25', 'states nan x 0.25'),
        ('inf', 'inf', 'states inf'),
        ('-0.25', '-0.25', 'states -0.25'),
        ('10', '10', r'0.05 to 5 um/px was expected'),
        ('0.25', '0.26', 'square ones were expected'),
        ('none', '0.25', 'states no resolution'),
    ],
)
def test_implausible_resolutions_are_refused_and_an_option_overrides_them(slides, monkeypatch, x, y, message):
    _with_properties(monkeypatch, openslide__mpp_x=x, openslide__mpp_y=y)
    with pytest.raises(IgniteError, match=message) as error:
        open_slide(slides['aperio'])
    assert '--mpp' in str(error.value) and '\n' not in str(error.value) and slides['aperio'].name in str(error.value)
    slide = open_slide(slides['aperio'], 0.5)
    assert (slide.um_per_px, slide.um_per_px_source) == (0.5, 'option')


def test_resolution_is_absent_or_wrong_as_an_option(tmp_path, slides):
    for layout, name in (('aperio', 'n.svs'), ('generic', 'n.tif'), ('ome', 'n.ome.tif')):
        write_slide(tmp_path / name, (300, 300), um_per_px=None, layout=layout)
        with pytest.raises(IgniteError, match='states no resolution.*--mpp'):
            open_slide(tmp_path / name)
        assert open_slide(tmp_path / name, 0.3).stated_um_per_px is None
    for wrong in (0, -1, float('nan'), 7):
        with pytest.raises(IgniteError, match='--mpp is'):
            open_slide(slides['aperio'], wrong)


def test_images_are_told_from_slides_by_content(tmp_path, slides):
    pixels = np.zeros((64, 64, 3), np.uint8)
    for name in ('a.png', 'a.jpg', 'a.bmp', 'a.tif', 'a.ome.tif'):
        Image.fromarray(pixels).save(tmp_path / name)
    shutil.copy(slides['ome'], tmp_path / 'tiled.png')
    (tmp_path / 'text.svs').write_text('no slide')
    (tmp_path / 'short.tif').write_bytes(b'II*\0')
    found = {
        path.name: is_slide(path) for path in [*tmp_path.iterdir(), *slides.values(), tmp_path, tmp_path / 'none.svs']
    }
    assert {name for name, slide in found.items() if slide} == {'a.svs', 'g.tif', 'o.ome.tif', 'tiled.png', 'text.svs'}


def test_files_that_are_no_slides_are_refused(tmp_path):
    (tmp_path / 'text.svs').write_text('no slide')
    (tmp_path / 'empty.svs').touch()
    (tmp_path / 'header.svs').write_bytes(b'II*\0' + bytes(4))
    Image.new('RGB', (64, 64)).save(tmp_path / 'plain.tif')
    tifffile.imwrite(tmp_path / 'labels.tif', np.zeros((64, 64), np.uint8), tile=(16, 16))
    tifffile.imwrite(tmp_path / 'deep.tif', np.zeros((64, 64, 3), np.uint16), tile=(16, 16), photometric='rgb')
    expected = {
        'text.svs': 'is no file of a slide', 'empty.svs': 'is empty', 'header.svs': 'cut off',
        'plain.tif': 'without tiles', '.': 'is a folder', 'none.svs': 'does not exist',
    }  # fmt: skip
    for name, message in expected.items():
        with pytest.raises(IgniteError, match=message) as error:
            open_slide(tmp_path / name)
        assert str(error.value).count('. ') == 0
    for name in ('labels.tif', 'deep.tif'):
        with pytest.raises(IgniteError):
            open_slide(tmp_path / name)


def test_truncated_and_damaged_slides(slides, tmp_path, monkeypatch):
    for path in slides.values():
        content = path.read_bytes()
        for share in (0.3, 0.7, 0.999):
            (cut := tmp_path / path.name).write_bytes(content[: int(share * len(content))])
            with pytest.raises(IgniteError) as error:
                open_slide(cut)
            assert path.name in str(error.value)
        with tifffile.TiffFile(path) as tif:
            start, count = (int(values[9]) for values in (tif.pages[0].dataoffsets, tif.pages[0].databytecounts))
        (hurt := tmp_path / path.name).write_bytes(content[:start] + bytes(count) + content[start + count :])
        for _ in range(2):
            with open_slide(hurt) as slide:
                view = slide.at(0.25)
                assert view[:200, :200].any()
                for _ in range(2):
                    with pytest.raises(IgniteError, match=f'{path.name} is damaged'):
                        view[:, 256:700]
            if path.suffix == '.svs':
                _without_tiles(monkeypatch)


def test_a_tile_cut_short_is_damaged(slides, tmp_path):
    content = slides['ome'].read_bytes()
    with tifffile.TiffFile(slides['ome']) as tif:
        start, count = (int(values[0]) for values in (tif.pages[0].dataoffsets, tif.pages[0].databytecounts))
    (tmp_path / 'cut.ome.tif').write_bytes(
        content[: start + count // 2] + bytes(count - count // 2) + content[start + count :]
    )
    with (
        open_slide(tmp_path / 'cut.ome.tif') as slide,
        pytest.raises(IgniteError, match='damaged at row 0, column 0 of'),
    ):
        slide.at(0.25)[:10, :10]


@pytest.mark.parametrize('layout', ['ome', 'aperio'])
@pytest.mark.parametrize('fill', [b'\0', b'\xff', bytes(range(255, -1, -1))])
def test_a_tile_overwritten_in_its_middle_is_damaged(slides, tmp_path, layout, fill):
    content, path = bytearray(slides[layout].read_bytes()), tmp_path / slides[layout].name
    with tifffile.TiffFile(slides[layout]) as tif:
        place = int(np.argmax(tif.pages[0].databytecounts))
        start, count = tif.pages[0].dataoffsets[place], tif.pages[0].databytecounts[place]
    content[start + count // 2 : start + count * 3 // 4] = (fill * count)[: count * 3 // 4 - count // 2]
    path.write_bytes(content)
    with open_slide(path) as slide, pytest.raises(IgniteError, match='is damaged at row'):
        view = slide.at(slide.um_per_px)
        view[: view.shape[0]]


def test_pages_of_other_kinds_are_no_levels(tmp_path):
    rng, path = np.random.default_rng(), tmp_path / 'mask.tif'
    options = dict(tile=(256, 256), metadata=None, resolution=(4e4, 4e4), resolutionunit='CENTIMETER')
    with tifffile.TiffWriter(path) as tif:
        tif.write(pixels := rng.integers(0, 255, (1024, 1024, 3), np.uint8), photometric='rgb', **options)
        tif.write(np.zeros((512, 512), np.uint8), subfiletype=1, photometric='minisblack', **options)
        tif.write(np.zeros((256, 256, 3), np.uint16), subfiletype=1, photometric='rgb', **options)
    with open_slide(path) as slide:
        assert len(slide.levels) == 1 and len(slide.notes) == 2
        assert abs(slide.at(1.0)[:].astype(int) - _mean(pixels, 4, 1, (256, 256))).max() <= 1


def test_openslide_is_needed(slides, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openslide', None)
    with pytest.raises(IgniteError, match='openslide.*reading whole slides needs it'):
        open_slide(slides['aperio'])


def test_levels_that_do_not_fit_are_noted(tmp_path):
    pixels = np.random.default_rng().integers(0, 255, (600, 800, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / 'l.tif') as tif:
        options = {'tile': (64, 64), 'photometric': 'rgb', 'metadata': None}
        tif.write(pixels, **options, resolution=(20000, 20000), resolutionunit='CENTIMETER')
        tif.write(pixels[:300, :300], **options, subfiletype=1)
        tif.write(pixels[::4, ::4], **options, subfiletype=1)
    with open_slide(tmp_path / 'l.tif') as slide:
        assert [level.downsample for level in slide.levels] == [1, 4] and slide.um_per_px == 0.5
        assert slide.notes == ['a level of 300 x 300 px does not fit 600 x 800 px and is not used']
        np.testing.assert_array_equal(slide.at(0.5)[100:200], pixels[100:200])


def test_levels_of_openslide_that_do_not_fit_are_noted(slides, monkeypatch):
    expected = open_slide(slides['aperio']).at(4.0)[:]
    _with_properties(monkeypatch)
    monkeypatch.setattr(_Fake, 'level_dimensions', ((1607, 1203), (401, 600), (100, 75)), raising=False)
    monkeypatch.setattr(_Fake, 'level_downsamples', (1.0, 3.0, 16.05), raising=False)
    with open_slide(slides['aperio']) as slide:
        assert [level.downsample for level in slide.levels] == [1, 16]
        assert slide.notes == ['level 1 of 600 x 401 px does not fit 1203 x 1607 px and is not used']
        view = slide.at(4.0)
        assert view.level == 1 and np.abs(view[:].astype(int) - expected).mean() < 2
    with pytest.raises(IgniteError, match='was closed'):
        slide.at(4.0)[:]


def test_a_closed_slide_says_so(slides):
    for path in slides.values():
        view = (slide := open_slide(path)).at(0.5)
        slide.close()
        with pytest.raises(IgniteError, match='was closed'):
            view[:]


def test_planes_and_transparency_of_a_tiff(tmp_path):
    pixels = np.random.default_rng().integers(0, 255, (300, 200, 4), np.uint8)
    resolution = {'resolution': (20000, 20000), 'resolutionunit': 'CENTIMETER', 'tile': (64, 64), 'photometric': 'rgb'}
    planes = np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / 'p.tif', planes, planarconfig='separate', compression='zlib', **resolution)
    tifffile.imwrite(tmp_path / 't.tif', pixels, extrasamples=['unassalpha'], **resolution)
    np.testing.assert_array_equal(open_slide(tmp_path / 'p.tif').at(0.5)[:], pixels[..., :3])
    alpha = pixels[..., 3:] / 255
    assert (
        np.abs(open_slide(tmp_path / 't.tif').at(0.5)[:] - (pixels[..., :3] * alpha + 255 * (1 - alpha))).max() <= 0.51
    )


def test_icc_profile_is_applied_when_asked(slides, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    swapped = (
        profile.replace(b'rXYZ', b'tmpZ').replace(b'gXYZ', b'rXYZ').replace(b'tmpZ', b'gXYZ')
    )  # red and green change places
    for name, layout in (('i.svs', 'aperio'), ('i.ome.tif', 'ome')):
        write_slide(tmp_path / name, (600, 600), icc=swapped, layout=layout, tissue_share=1)
        with open_slide(tmp_path / name) as slide:
            assert slide.icc[-500:] == swapped[-500:]
            plain, converted = slide.at(0.5)[:], slide.at(0.5, icc=True)[:]
            assert (
                np.abs(plain[..., [1, 0, 2]].astype(int) - converted).mean()
                < 3
                < np.abs(plain.astype(int) - converted).mean()
            )
    with pytest.raises(IgniteError, match='has no ICC profile'):
        open_slide(slides['aperio']).at(0.5, icc=True)


def test_thumbnail_shows_the_whole_slide(slides):
    with open_slide(slides['aperio']) as slide:
        thumbnail = slide.thumbnail(200)
        expected = np.asarray(Image.fromarray(slide.at(0.25)[:]).resize((200, 150), Image.Resampling.BOX))
        assert thumbnail.shape == (150, 200, 3) and np.abs(thumbnail.astype(int) - expected).mean() < 5
        assert slide.thumbnail(10**6).shape == (1203, 1607, 3)


def test_blocks_are_read_once_for_overlapping_windows():
    calls, pixels = [], np.random.default_rng().integers(0, 255, (900, 1100, 3), np.uint8)

    def read(top, left, height, width):
        calls.append((top, left))
        return pixels[top : top + height, left : left + width], 0

    view = SlideView(read, (900, 1100), Fraction(1), 0.5, 0, 1.0)
    for y in range(0, 900, 96):
        for x in range(0, 1100, 96):
            np.testing.assert_array_equal(view[y : y + 128, x : x + 128], pixels[y : y + 128, x : x + 128])
    assert len(calls) == len(set(calls))


@pytest.mark.skipif(not REAL.exists(), reason='the real slide is not here')
def test_real_slide_equals_openslide():
    expected = np.asarray(openslide.OpenSlide(REAL).read_region((500, 1000), 0, (700, 600)).convert('RGB'))
    with open_slide(REAL) as slide:
        assert (slide.format, slide.size, slide.um_per_px, slide.icc) == ('aperio', (2967, 2220), 0.499, None)
        view = slide.at(0.5)
        assert view.um_per_px == 0.499 and view.downsample == 1
        assert np.abs(view[1000:1600, 500:1200].astype(int) - expected).max() <= 2
