"""Label images: write a PNG of class ids 1..16 and an overlay with legend for each, and run.json with the settings."""

from mmseg_ignite.apis import load_config, predict
from mmseg_ignite.apis.arguments import config_parser
from mmseg_ignite.apis.predicting import PALETTES
from mmseg_ignite.cli import run
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.images.reading import MAX_PIXELS


def main() -> None:
    parser = config_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file, work dir of a training, or ensemble.json')
    parser.add_argument('images', nargs='+', metavar='IMAGE|FOLDER')
    parser.add_argument('--out', required=True, help='folder for the results')
    parser.add_argument(
        '--um-per-px',
        type=float,
        metavar='UM',
        help='resolution of the images (default: what each file states, else the resolution of the training)',
    )
    parser.add_argument('--palette', choices=PALETTES, default='official', help='of the overlays (default: official)')
    parser.add_argument(
        '--max-pixels', type=int, default=MAX_PIXELS, help='larger images are not decoded (default: %(default)s)'
    )
    parser.add_argument('--device', help='e.g. cuda:0 or cpu (default: the best device)')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
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
