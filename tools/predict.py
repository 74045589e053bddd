"""Label images: a PNG of class ids 1..16 and an overlay with legend for each, and run.json, which says how."""

import argparse

from mmseg_ignite.apis import load_config, predict
from mmseg_ignite.apis.options import add_options_argument
from mmseg_ignite.apis.predicting import PALETTES
from mmseg_ignite.cli import run
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.images.reading import MAX_PIXELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or ensemble.json of several')
    parser.add_argument('images', nargs='+', metavar='IMAGE|FOLDER')
    parser.add_argument('--out', required=True, help='folder for the results')
    parser.add_argument(
        '--um-per-px',
        type=float,
        metavar='UM',
        help='resolution of the images (default: what each file states, else that of the training)',
    )
    parser.add_argument('--palette', choices=PALETTES, default='official', help='of the overlays (default: official)')
    parser.add_argument(
        '--max-pixels', type=int, default=MAX_PIXELS, help='larger images are not decoded (default: %(default)s)'
    )
    parser.add_argument('--device', help='e.g. cuda:0 or cpu (default: the best there is)')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    add_options_argument(parser)
    args = parser.parse_args()
    faults = predict(
        load_config(args.config, args.cfg_options),
        args.checkpoint,
        args.images,
        args.out,
        args.device,
        args.amp,
        um_per_px=args.um_per_px,
        palette=args.palette,
        max_pixels=args.max_pixels,
    )
    if faults:
        raise IgniteError(f'{len(faults)} image(s) were skipped, the others are in {args.out}: {faults[0]}')


if __name__ == '__main__':
    run(main)
