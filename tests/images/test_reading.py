"""Images from other sources: damage is refused, and changes of the pixels are reported."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.images.png import DamagedPicture, check_png
from mmseg_ignite.images.reading import read_image

LOSSLESS = [('PNG', {}), ('TIFF', {}), ('TIFF', {'compression': 'tiff_lzw'}), ('BMP', {})]
LOSSY = [('JPEG', {}), ('JPEG', {'progressive': True}), ('JPEG', {'restart_marker_rows': 2})]
LOSSY += [('TIFF', {'compression': 'jpeg'})]
TIFF_ONLY = [('TIFF', {'compression': 'tiff_adobe_deflate'}), ('TIFF', {'compression': 'packbits'})]


def picture(height=120, width=152):
    small = np.random.default_rng().integers(0, 256, (12, 15, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(image, kind='PNG', **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def read(tmp_path):
    def one(content, **options):
        (tmp_path / 'a.png').write_bytes(content)  # the content counts, not the suffix
        return read_image(tmp_path / 'a.png', **options)

    return one


@pytest.mark.parametrize(('kind', 'options'), LOSSLESS + TIFF_ONLY)
def test_lossless_formats_give_the_pixels(read, kind, options):
    image = picture()
    found = read(encoded(image, kind, **options))
    np.testing.assert_array_equal(found.pixels, image)
    assert found.um_per_px is None and (found.transparent, found.orientation, found.pages) == (0, 1, 1)


@pytest.mark.parametrize(('kind', 'options'), LOSSY)
def test_lossy_formats_give_nearly_the_pixels(read, kind, options):
    image = picture()
    found = read(encoded(image, kind, quality=95, **options)).pixels
    assert np.abs(found.astype(int) - image).mean() < 6


@pytest.mark.parametrize(('kind', 'options'), LOSSLESS + LOSSY + TIFF_ONLY)
def test_truncated_files_are_refused(read, kind, options):
    content = encoded(picture(), kind, **options)
    for length in (len(content) - 2, int(len(content) * np.random.default_rng().uniform(0.1, 0.99)), 20):
        with pytest.raises(IgniteError, match='a.png'):
            read(content[:length])


@pytest.mark.parametrize('options', [o for k, o in LOSSY if k == 'JPEG'])
def test_a_jpeg_with_an_end_but_missing_pixels_is_refused(read, options):
    """Decoders silently fill the rest with gray."""
    content = encoded(picture(), 'JPEG', **options)
    start = content.rindex(b'\xff\xda') + 20 if options.get('progressive') else len(content) // 2
    length = int(np.random.default_rng().integers(start, len(content) - 60))
    while content[length - 1] == 0xFF:  # half a marker
        length -= 1
    with pytest.raises(IgniteError, match='incomplete'):
        read(content[:length] + b'\xff\xd9')
    with pytest.raises(IgniteError):
        read(content[:length] + bytes(len(content) - length))


@pytest.mark.parametrize('subsampling', [0, 2])
def test_a_jpeg_with_zeros_or_text_after_a_cut_is_refused(read, subsampling):
    content = encoded(picture(), 'JPEG', quality=90, subsampling=subsampling)
    read(content + bytes(100))
    for part in (0.25, 0.5, 0.9):
        length = int(len(content) * part)
        for tail in (bytes(len(content) - length), b'connection lost'):
            with pytest.raises(IgniteError, match='a.png'):
                read(content[:length] + tail)


def test_the_second_image_of_a_camera_is_ignored(read):
    first, second = picture(), picture()
    content = encoded(first, 'MPO', save_all=True, append_images=[Image.fromarray(second)])
    found = read(content)
    assert np.abs(found.pixels.astype(int) - first).mean() < 20 and found.pages == 2
    cut = content.index(b'\xff\xda') + 300
    with pytest.raises(IgniteError, match='a.png'):
        read(content[:cut] + bytes(200) + content[cut + 200 :])


def jpeg_tiff(image, compression):
    """Return a TIFF with one JPEG: the obsolete compression 6, or compression 7 without shared tables."""
    jpeg = encoded(image, 'JPEG', quality=90, subsampling=2)
    height, width = image.shape[:2]
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 6, 273: None, 277: 3, 278: height, 279: len(jpeg)}
    if compression == 6:
        tags |= {513: None, 514: len(jpeg)}
    tags[530] = 2 | 2 << 16
    bits = 8 + 2 + 12 * len(tags) + 4
    entries = b''
    for tag, value in tags.items():
        if tag == 258:
            entries += struct.pack('<HHII', tag, 3, 3, bits)
        elif tag == 530:
            entries += struct.pack('<HHII', tag, 3, 2, value)
        else:
            entries += struct.pack('<HHII', tag, 4, 1, bits + 6 if value is None else value)
    return struct.pack('<2sHIH', b'II', 42, 8, len(tags)) + entries + bytes(4) + struct.pack('<3H', 8, 8, 8) + jpeg


@pytest.mark.parametrize('content', [
    lambda image: encoded(image, 'TIFF', compression='jpeg', tiffinfo={278: 32}),
    lambda image: jpeg_tiff(image, 6),
    lambda image: jpeg_tiff(image, 7),
])  # fmt: skip
def test_a_jpeg_strip_that_ends_early_is_refused(read, content):
    image = picture()
    content = content(image)
    assert np.abs(read(content).pixels.astype(int) - image).mean() < 20
    position = content.rindex(b'\xff\xda') + 14
    end = content.index(b'\xff\xd9', position)
    cut = int(np.random.default_rng().integers(position + 20, end - 40))
    for tail in (b'\xff\xd9' + bytes(end - cut), b'\xff\xd9' + content[cut + 2 : end + 2], bytes(end + 2 - cut)):
        with pytest.raises(IgniteError, match='a.png'):
            read(content[:cut] + tail + content[cut + len(tail) :])


def tiff_with_tags_first(image, tiled):
    """Return a TIFF with zlib strips or tiles after its tags, so that a truncated one has all tags."""
    height, width = image.shape[:2]
    side = 64
    if tiled:
        padded = np.zeros((-(-height // side) * side, -(-width // side) * side, 3), np.uint8)
        padded[:height, :width] = image
        blocks = [padded[y : y + side, x : x + side] for y in range(0, height, side) for x in range(0, width, side)]
    else:
        blocks = [image[y : y + side] for y in range(0, height, side)]
    data = [zlib.compress(block.tobytes()) for block in blocks]
    count = len(data)
    layout = {322: side, 323: side} if tiled else {278: side}
    offsets, counts = (324, 325) if tiled else (273, 279)
    tags = {256: width, 257: height, 258: None, 259: 8, 262: 2, 277: 3, **layout, offsets: None, counts: None}
    extra = 8 + 2 + 12 * len(tags) + 4
    first = extra + 6 + 8 * count
    positions = np.cumsum([first, *map(len, data)])[:-1]
    entries = b''
    for tag in sorted(tags):
        if tag == 258:
            entries += struct.pack('<HHII', tag, 3, 3, extra)
        elif tag in (offsets, counts):
            entries += struct.pack('<HHII', tag, 4, count, extra + 6 + (4 * count if tag == counts else 0))
        else:
            entries += struct.pack('<HHII', tag, 4, 1, tags[tag])
    head = b'II*\0' + struct.pack('<I', 8) + struct.pack('<H', len(tags)) + entries + bytes(4)
    return head + struct.pack(f'<3H{2 * count}I', 8, 8, 8, *positions, *map(len, data)) + b''.join(data)


@pytest.mark.parametrize('tiled', [True, False])
def test_a_truncated_tiff_with_all_its_tags_is_refused(read, tiled):
    image = picture(150, 190)
    content = tiff_with_tags_first(image, tiled)
    np.testing.assert_array_equal(read(content).pixels, image)
    for length in (len(content) - 1, len(content) * 2 // 3):
        with pytest.raises(IgniteError, match='truncated'):
            read(content[:length])
    damaged = bytearray(content)
    damaged[-40] ^= 0xFF
    with pytest.raises(IgniteError, match='a.png'):  # zlib detects it
        read(bytes(damaged))


def test_a_png_with_a_wrong_checksum_or_without_data_or_end_is_refused(read):
    content = encoded(picture())
    position = content.index(b'IDAT')
    wrong = bytearray(content)
    wrong[position + 30] ^= 1
    with pytest.raises(IgniteError, match='checksum'):
        read(bytes(wrong))
    with pytest.raises(IgniteError, match='no pixels'):
        read(content[: position - 4] + content[-12:])
    with pytest.raises(IgniteError, match='truncated'):
        read(content[:-12])


def test_pillow_accepts_damage_that_is_refused():
    content = encoded(picture())
    start, last = content.index(b'IDAT') - 4, bytearray(content)
    checksum = start + 8 + int.from_bytes(content[start : start + 4], 'big')
    last[-1] ^= 1
    for damaged in (content[:checksum] + bytes(4) + content[checksum + 4 :], content[:-12], content[:-4], bytes(last)):
        with Image.open(io.BytesIO(damaged)) as image:  # load() ignores checksums and a missing end
            pixels = np.array(image)
        np.testing.assert_array_equal(pixels, np.array(Image.open(io.BytesIO(content))))
        with pytest.raises(DamagedPicture):
            check_png(damaged)
    for damaged in (content[:-4], bytes(last)):
        Image.open(io.BytesIO(damaged)).verify()  # ignores the last checksum
    assert Image.open(io.BytesIO(sixteen('.png'))).mode == 'RGB' and check_png(sixteen('.png')).bits == 16


def sixteen(suffix):
    return cv2.imencode(suffix, picture().astype(np.uint16) * 200)[1].tobytes()


@pytest.mark.parametrize(
    ('content', 'word'),
    [
        (lambda: encoded(Image.fromarray(picture()).convert('CMYK'), 'JPEG'), 'CMYK'),
        (lambda: encoded(Image.fromarray(picture()).convert('L')), 'grayscale'),
        (lambda: encoded(Image.fromarray(picture()).convert('LA')), 'grayscale'),
        (lambda: encoded(Image.fromarray(picture()).convert('1')), 'black and white'),
        (lambda: encoded(Image.fromarray(picture()).convert('F'), 'TIFF'), '32-bit float'),
        (lambda: sixteen('.png'), '16-bit RGB'),
        (lambda: sixteen('.tif'), '16-bit RGB'),
        (lambda: encoded(picture(), 'GIF'), 'not a PNG'),
        (lambda: b'', 'empty'),
        (lambda: b'no picture', 'not a PNG'),
    ],
)
def test_images_other_than_8_bit_rgb_are_refused(read, content, word):
    with pytest.raises(IgniteError, match=word) as error:
        read(content())
    assert 'a.png' in str(error.value)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'BMP'])
def test_palettes_are_converted(read, kind):
    image = Image.fromarray(picture()).convert('P', palette=Image.Palette.ADAPTIVE, colors=40)
    np.testing.assert_array_equal(read(encoded(image, kind)).pixels, np.array(image.convert('RGB')))


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_transparent_areas_are_composited_on_white(read, kind):
    image, alpha = picture(), np.random.default_rng().integers(0, 256, (120, 152)).astype(np.uint8)
    alpha[:60], alpha[60:90] = 0, 255
    found = read(encoded(np.dstack([image, alpha]), kind))
    expected = 255 - (255.0 - image) * (alpha[..., None] / 255.0)
    np.testing.assert_allclose(found.pixels, expected, atol=0.51)
    assert (found.pixels[:60] == 255).all() and found.transparent == (alpha < 255).mean()
    np.testing.assert_array_equal(found.blank, alpha == 0)
    opaque = read(encoded(np.dstack([image, np.full_like(alpha, 255)]), kind))
    np.testing.assert_array_equal(opaque.pixels, image)
    assert opaque.transparent == 0 and opaque.blank is None


def test_a_transparent_palette_entry_and_colour_are_white(read):
    image = Image.fromarray(picture()).convert('P', palette=Image.Palette.ADAPTIVE, colors=40)
    entry = int(np.array(image)[0, 0])
    found = read(encoded(image, transparency=entry))
    assert (found.pixels[np.array(image) == entry] == 255).all() and 0 < found.transparent < 1
    plain = np.full((50, 60, 3), 120, np.uint8)
    plain[:20] = 7
    found = read(encoded(plain, transparency=(7, 7, 7)))
    assert (found.pixels[:20] == 255).all() and (found.pixels[20:] == 120).all() and found.transparent == 0.4


@pytest.mark.parametrize(
    ('kind', 'options', 'um_per_px'),
    [
        ('PNG', dict(dpi=(25400 / 0.25,) * 2), 0.25),
        ('PNG', dict(dpi=(300, 300)), None),
        ('PNG', dict(dpi=(25400 / 0.25, 25400 / 0.5)), None),
        ('TIFF', dict(dpi=(25400 / 0.5,) * 2), 0.5),
        ('TIFF', dict(resolution_unit=3, x_resolution=40_000, y_resolution=40_000), 0.25),
        ('TIFF', dict(resolution_unit=1, x_resolution=40_000, y_resolution=40_000), None),
        ('TIFF', dict(dpi=(72, 72)), None),
        (
            'TIFF',
            dict(description='ImageJ=1.53t\nunit=micron\n', resolution_unit=1, x_resolution=2.0, y_resolution=2.0),
            0.5,
        ),
        ('TIFF', dict(description='<Pixels PhysicalSizeX="0.23" PhysicalSizeXUnit="µm"/>'), 0.23),
        ('TIFF', dict(description='<Pixels PhysicalSizeX="230" PhysicalSizeXUnit="nm"/>'), 0.23),
        ('TIFF', dict(description='<Pixels PhysicalSizeX="230"/>'), None),
        ('TIFF', dict(description='<Pixels PhysicalSizeX="0.25" PhysicalSizeY="0.25"/>'), 0.25),
        (
            'TIFF',
            dict(description='<P PhysicalSizeX="0.25" PhysicalSizeY="250" PhysicalSizeYUnit="nm"/>', dpi=(50_800,) * 2),
            0.25,
        ),
        ('TIFF', dict(description='<Pixels PhysicalSizeX="0.25" PhysicalSizeY="0.5"/>', dpi=(50_800,) * 2), None),
        ('TIFF', dict(description='<Pixels PhysicalSizeX="0.25" PhysicalSizeXUnit="pixel"/>'), None),
        (
            'TIFF',
            dict(description='ImageJ=1.5\nunit=um\n', resolution_unit=1, x_resolution=2.0, y_resolution=4.0),
            None,
        ),
        ('TIFF', dict(dpi=(50_800, 25_400)), None),
        ('TIFF', dict(description='Aperio Image Library|AppMag = 20|MPP = 0.4990'), 0.499),
        ('JPEG', dict(dpi=(50_800, 50_800)), 0.5),
        ('JPEG', dict(dpi=(96, 96)), None),
    ],
)
def test_plausible_resolutions_are_read(read, kind, options, um_per_px):
    found = read(encoded(picture(), kind, **options))
    assert found.um_per_px == (um_per_px and pytest.approx(um_per_px, rel=1e-3)) and found.resolution_source


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_undone(read, kind, orientation):
    image, exif = np.zeros((48, 64, 3), np.uint8), Image.Exif()
    image[:16, :16] = 255  # the top left corner of the stored pixels
    exif[274] = orientation
    found = read(encoded(image, kind, exif=exif))
    assert found.orientation == orientation and found.pixels.shape[:2] == ((48, 64) if orientation < 5 else (64, 48))
    bottom, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)  # EXIF 2.3, 4.6.4 A
    corner = found.pixels[-8 if bottom else 8, -8 if right else 8]
    assert corner.min() > 200 and (found.pixels > 200).mean() < 0.1


def test_the_first_page_is_read_and_the_number_reported(read):
    pages = [Image.fromarray(picture()) for _ in range(3)]
    found = read(encoded(pages[0], 'TIFF', save_all=True, append_images=pages[1:]))
    np.testing.assert_array_equal(found.pixels, np.array(pages[0]))
    assert found.pages == 3


def test_a_gigantic_header_is_not_decoded(read):
    content = bytearray(encoded(picture()))
    content[16:24] = struct.pack('>II', 40_000, 40_000)
    content[29:33] = struct.pack('>I', zlib.crc32(bytes(content[12:29])))
    with pytest.raises(IgniteError, match='40000 x 40000 px'):
        read(bytes(content))
    small = encoded(picture())
    with pytest.raises(IgniteError, match='at most 18,239'):
        read(small, max_pixels=120 * 152 - 1)
    assert read(small, max_pixels=120 * 152).pixels.shape == (120, 152, 3)
    before = Image.MAX_IMAGE_PIXELS
    assert before is not None  # Pillow's own limit is restored


def test_names_that_are_not_utf8_and_paths_that_are_not_files(tmp_path):
    image = picture()
    path = tmp_path / os.fsdecode(b'caf\xe9\xff.png')
    path.write_bytes(encoded(image))
    np.testing.assert_array_equal(read_image(path).pixels, image)
    path.write_bytes(b'junk')
    (tmp_path / 'folder.png').mkdir()
    os.mkfifo(tmp_path / 'fifo.png')
    for given, word in ((path, r'caf\\xe9'), (tmp_path / 'folder.png', 'folder'), (tmp_path / 'fifo.png', 'regular file'),
                        (tmp_path / 'none.png', 'does not exist')):  # fmt: skip
        with pytest.raises(IgniteError, match=word) as error:
            read_image(given)
        str(error.value).encode()  # can be printed
