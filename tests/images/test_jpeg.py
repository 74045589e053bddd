"""JPEGs that end early are refused, complete ones pass."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_ignite.images.jpeg import check_jpeg
from mmseg_ignite.images.png import DamagedPicture

ENCODINGS = [
    dict(subsampling=0),
    dict(subsampling=2),
    dict(subsampling=1, optimize=True),
    dict(progressive=True),
    dict(restart_marker_rows=1),
    dict(restart_marker_blocks=3, subsampling=2),
    dict(restart_marker_blocks=2, progressive=True),
]


def encoded(quality=None, **options):
    """Return a JPEG of random size and quality."""
    random = np.random.default_rng()
    small = random.integers(0, 256, (9, 13, 3)).astype(np.uint8)
    image = cv2.resize(small, tuple(map(int, random.integers(60, 200, 2))), interpolation=cv2.INTER_CUBIC)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, 'JPEG', quality=int(quality or random.integers(5, 97)), **options)
    return stream.getvalue()


def cuts(content):
    """Return random positions in the entropy-coded data of the last scan."""
    start = content.rindex(b'\xff\xda') + 14
    return np.random.default_rng().integers(start, len(content) - 40, 4)


@pytest.mark.parametrize('options', ENCODINGS)
def test_complete_jpegs_pass_whatever_follows(options):
    content = encoded(**options)
    check_jpeg(content)
    for tail in (bytes(1000), b'text', content[: len(content) // 2], b'\xff\xd9'):
        check_jpeg(content + tail)
    for quality in range(5, 40, 2):  # quantisation tables with values of 255, which are not markers
        check_jpeg(encoded(quality, **options))


@pytest.mark.parametrize('options', ENCODINGS)
@pytest.mark.parametrize('quality', [75, 90, 95])
def test_a_truncated_download_is_refused(options, quality):
    content = encoded(quality, **options)
    for position in (*cuts(content), *(int(len(content) * part) for part in (0.1, 0.25, 0.5, 0.9))):
        rest = len(content) - position
        for tail in (b'', bytes(rest), b'<html>not found</html>' * (rest // 22 + 1), content[:rest], b'\xff' * rest):
            with pytest.raises(DamagedPicture):
                check_jpeg(content[:position] + tail)


@pytest.mark.parametrize('options', ENCODINGS)
def test_an_end_before_the_last_pixel_is_refused(options):
    content = encoded(**options)
    for position in cuts(content):
        damaged = content[:position].rstrip(b'\xff') + b'\xff\xd9'
        Image.open(io.BytesIO(damaged)).load()  # Pillow accepts it
        with pytest.raises(DamagedPicture, match='incomplete'):
            check_jpeg(damaged)


@pytest.mark.parametrize(
    'options', [o for o in ENCODINGS if 'restart_marker_rows' in o or 'restart_marker_blocks' in o]
)
def test_a_lost_restart_interval_is_refused(options):
    content = encoded(**options)
    start = content.rindex(b'\xff\xda')
    positions = [
        i for i in range(start, len(content) - 1) if content[i] == 0xFF and content[i + 1] in range(0xD0, 0xD8)
    ]
    at = int(np.random.default_rng().integers(len(positions) - 1))
    for damaged in (
        content[: positions[at]] + content[positions[at + 1] :],  # in the middle
        content[: positions[at]] + b'\xff\xd9',  # all from there on
        content[: positions[at] - 4] + content[positions[at] :],  # its last bytes
    ):
        with pytest.raises(DamagedPicture, match='incomplete'):
            check_jpeg(damaged)


@pytest.mark.parametrize('options', [dict(progressive=True), dict(progressive=True, restart_marker_rows=2)])
def test_missing_scans_of_a_progressive_jpeg_are_refused(options):
    content = encoded(**options)
    position = len(content) - 2
    while content.count(b'\xff\xda', 0, position) > 1:
        position = content.rindex(b'\xff\xda', 0, position)
        start = content.rindex(b'\xff\xc4', 0, position) if content[:position].rfind(b'\xff\xc4') > 0 else position
        with pytest.raises(DamagedPicture, match='incomplete'):
            check_jpeg(content[:start] + b'\xff\xd9')


def test_an_early_scan_of_a_progressive_jpeg_counts_too():
    content = encoded(95, progressive=True)
    second = content.index(b'\xff\xda', content.index(b'\xff\xda') + 2)
    first_end = content.rindex(b'\xff\xc4', 0, second)
    with pytest.raises(DamagedPicture, match='incomplete'):
        check_jpeg(content[: first_end - 40].rstrip(b'\xff') + content[first_end:])
