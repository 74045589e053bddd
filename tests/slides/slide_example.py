"""Synthetic pyramidal slides, written quickly: a few JPEG tiles are encoded once and repeated."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile

GLASS = (243, 241, 244)
VARIANTS = 4  # the texture repeats after 4 x 4 tiles


def write_slide(
    path: Path,
    size: tuple[int, int] = (3000, 4000),
    um_per_px: float | None = 0.25,
    tissue_share: float = 0.3,
    levels: tuple[int, ...] = (1, 4, 16),
    tile: int = 256,
    seed: int = 0,
    quality: int = 80,
    missing: tuple[tuple[int, int], ...] = (),
    layout: str = 'aperio',
    icc: bytes | None = None,
) -> np.ndarray:
    """Write a tiled pyramidal JPEG BigTIFF with blobs of textured tissue on glass.

    Args:
        path: File to write; .svs or .tif, .ome.tif for ``layout`` 'ome'.
        size: (H, W) of level 0.
        um_per_px: Resolution that the file states; None for none.
        tissue_share: Share of tiles with tissue, 0..1.
        levels: Downsamples, multiples of each other that divide ``tile``; sizes are rounded down.
        tile: Side of the square tiles.
        missing: (row, column) of level-0 tiles that are left out.
        layout: 'aperio', 'generic' (TIFF with a resolution tag) or 'ome' (reduced levels in SubIFDs).
        icc: ICC profile.

    Returns:
        (rows, columns) bool, the tiles of level 0 that are tissue.
    """
    rng = np.random.default_rng(seed)
    grid = tuple(-(-side // tile) for side in size)
    truth = _blobs(rng, grid, tissue_share)
    texture = _texture(rng, VARIANTS * tile)
    options = {
        'tile': (tile, tile),
        'dtype': 'uint8',
        'compression': 'jpeg',
        'photometric': 'ycbcr',
        'subsampling': (2, 2),
        'iccprofile': icc,
    }
    with tifffile.TiffWriter(path, bigtiff=True, ome=layout == 'ome') as tif:
        for number, factor in enumerate(levels):
            shape = tuple(side // factor for side in size)
            tiles = _tiles(truth, texture, factor, shape, tile, quality, missing if number == 0 else ())
            extra = _tags(layout, number, len(levels) - 1, shape, um_per_px, factor)
            tif.write(tiles, shape=(*shape, 3), **options, **extra)
    return truth


def _tags(layout: str, number: int, reduced: int, shape: tuple[int, int], um_per_px: float | None, factor: int) -> dict:
    """Return the arguments of tifffile that state the resolution and the place in the pyramid."""
    if layout == 'aperio':
        stated = '' if um_per_px is None else f'|MPP = {um_per_px}'
        text = f'Aperio Image Library v12.0\r\n{shape[1]}x{shape[0]} (256x256) JPEG/RGB Q=80|AppMag = 40{stated}'
        return {'description': text, 'metadata': None}
    if layout == 'generic':
        stated = (
            {} if um_per_px is None else {'resolution': (1e4 / um_per_px / factor,) * 2, 'resolutionunit': 'CENTIMETER'}
        )
        return {'subfiletype': int(number > 0), 'metadata': None, **stated}
    sizes = {} if um_per_px is None else {f'PhysicalSize{axis}': um_per_px for axis in 'XY'}
    units = {f'{name}Unit': 'µm' for name in sizes}
    return {'subfiletype': 1} if number else {'subifds': reduced, 'metadata': {'axes': 'YXS', **sizes, **units}}


def _blobs(rng: np.random.Generator, grid: tuple[int, int], share: float) -> np.ndarray:
    """Return (rows, columns) bool: smooth blobs that cover a share of the grid."""
    field = cv2.GaussianBlur(rng.standard_normal(grid), (0, 0), max(1.0, min(grid) / 12))
    return field > np.quantile(field, 1 - share) if 0 < share < 1 else np.full(grid, share >= 1)


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return (side, side, 3) uint8, pink tissue with purple nuclei."""
    small = [rng.standard_normal((side // part, side // part), np.float32) for part in (16, 2)]
    coarse, fine = (
        cv2.resize(cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 1, cv2.NORM_MINMAX), (side, side))[
            ..., None
        ]
        for noise in small
    )
    stroma = np.float32([225, 160, 200]) + (coarse - 0.5) * np.float32([40, 70, 40])
    picture = np.where(fine > 0.65, np.float32([110, 70, 150]), stroma)
    return (picture + 7 * rng.standard_normal((side, side, 1), np.float32)).clip(0, 255).astype(np.uint8)


def _tiles(
    truth: np.ndarray, texture: np.ndarray, factor: int, shape: tuple[int, int], tile: int, quality: int, missing: tuple
) -> Iterator[bytes]:
    """Yield the encoded tiles of a level, row by row; the same bytes for the same pixels."""
    small = tile // factor
    level = cv2.resize(texture, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    padded = np.pad(truth, [(0, factor), (0, factor)])
    encoded = {}
    for row in range(-(-shape[0] // tile)):
        for column in range(-(-shape[1] // tile)):
            if (row, column) in missing:
                yield b''
                continue
            y, x = row * factor, column * factor
            kinds = padded[y : y + factor, x : x + factor]
            places = (y % VARIANTS, x % VARIANTS) if kinds.any() else (0, 0)
            if (key := (kinds.tobytes(), places)) not in encoded:
                parts = np.roll(level, [-places[0] * small, -places[1] * small], (0, 1))
                picture = np.tile(parts, (-(-tile // parts.shape[0]), -(-tile // parts.shape[1]), 1))[:tile, :tile]
                tissue = np.kron(kinds, np.ones((small, small), bool))[..., None]
                encoded[key] = imagecodecs.jpeg8_encode(
                    np.where(tissue, picture, np.uint8(GLASS)), quality, outcolorspace='ycbcr', subsampling='420'
                )
            yield encoded[key]
