"""Predict images and whole slides: label maps, overlays, outlines for QuPath, areas and a viewer, with a record of each."""

from argparse import BooleanOptionalAction

from mmseg_ignite.apis import load_config, predict
from mmseg_ignite.apis.arguments import add_launcher, config_parser
from mmseg_ignite.apis.prediction_options import DEFAULT_FORMATS, FORMATS
from mmseg_ignite.cli import run
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.images.reading import MAX_PIXELS
from mmseg_ignite.inference.symmetries import NUMBERS
from mmseg_ignite.report.translations import LANGUAGES
from mmseg_ignite.visualization.colours import PALETTES


def main() -> None:
    parser = config_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file, work dir of a training, or ensemble.json')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='image, slide, .npy array, folder or pattern')
    parser.add_argument('--out', required=True, help='folder for the results')
    parser.add_argument(
        '--mpp',
        '--um-per-px',
        dest='um_per_px',
        type=float,
        metavar='UM',
        help='um/px of the inputs (default: what each file states; an image that states none is taken as in the training)',
    )
    names = '; '.join(f'{name}: {text}' for name, text in FORMATS.items())
    parser.add_argument(
        '--formats',
        nargs='+',
        choices=FORMATS,
        default=DEFAULT_FORMATS,
        metavar='FORMAT',
        help=f'what to write (default: {" ".join(DEFAULT_FORMATS)}). {names}',
    )
    parser.add_argument(
        '--min-area',
        type=float,
        default=100.0,
        metavar='UM2',
        help='smaller regions join their largest neighbour; 0 keeps them (default: %(default)g um2)',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1.0,
        metavar='UM',
        help='simplification of outlines; 0 keeps the edges of the pixels (default: %(default)g um)',
    )
    parser.add_argument('--tissue-mask', metavar='FILE', help='picture of the slide, above 0 where tissue is')
    parser.add_argument('--no-tissue-mask', action='store_true', help='predict the glass of slides too')
    parser.add_argument('--icc', action='store_true', help='convert the colours of slides by their ICC profile to sRGB')
    parser.add_argument('--background', action='store_true', help='also outline Background')
    parser.add_argument(
        '--no-bounds-offset',
        dest='bounds_offset',
        action='store_false',
        help='coordinates of outlines start at the corner of the slide, not of its bounds (QuPath with --no-crop)',
    )
    parser.add_argument(
        '--cases', metavar='CSV', help='columns slide and case: mean and minimum of the ratios of a case'
    )
    parser.add_argument('--symmetries', type=int, choices=NUMBERS, help='average over flips and turns')
    parser.add_argument('--window-batch', type=int, metavar='N', help='windows at once (default: 4, on a GPU 16)')
    parser.add_argument('--palette', choices=PALETTES, default='official', help='of the pictures (default: official)')
    parser.add_argument('--language', choices=LANGUAGES, default='en', help='shown first in slides.html (default: en)')
    parser.add_argument(
        '--max-pixels', type=int, default=MAX_PIXELS, help='larger images are not decoded (default: %(default)s)'
    )
    parser.add_argument('--overwrite', action='store_true', help='predict finished inputs again')
    parser.add_argument('--device', help='e.g. cuda:0 or cpu (default: the best device)')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--compile',
        action=BooleanOptionalAction,
        help='compile encoder and decoder first, half a minute or more (default: for slides, if it pays)',
    )
    add_launcher(parser)
    args = vars(parser.parse_args())
    args.pop('local_rank')
    faults = predict(load_config(args.pop('config'), args.pop('cfg_options')), args.pop('checkpoint'), **args)
    if faults:
        raise IgniteError(
            f'{len(faults)} input(s) were skipped, listed in {args["out"]}/run.json; the first: {faults[0]}'
        )


if __name__ == '__main__':
    run(main)
