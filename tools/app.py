"""Serve a page on which an image, or a region of a slide, is labelled: overlay, areas, GeoJSON and label PNG."""

from mmseg_ignite.apis import load_config
from mmseg_ignite.apis.arguments import config_parser
from mmseg_ignite.cli import run
from mmseg_ignite.serving import AppOptions, serve
from mmseg_ignite.serving.options import MAX_PIXELS, MAX_UPLOAD_MB


def main() -> None:
    parser = config_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file, work dir of a training, or ensemble.json')
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on; any but a loopback address lets other computers in, without a password '
        '(default: %(default)s)',
    )
    parser.add_argument('--port', type=int, default=7860, help='0: a free one (default: %(default)s)')
    parser.add_argument('--slides', metavar='FOLDER', help='slides on the server that the page offers')
    parser.add_argument(
        '--max-upload', type=float, default=MAX_UPLOAD_MB, metavar='MB', help='largest upload (default: %(default)g MB)'
    )
    parser.add_argument(
        '--max-pixels',
        type=int,
        default=MAX_PIXELS,
        metavar='N',
        help='largest image or region that is predicted (default: %(default)s)',
    )
    parser.add_argument(
        '--waiting',
        type=int,
        default=4,
        metavar='N',
        help='predictions that may wait while one runs; further ones are refused (default: %(default)s)',
    )
    parser.add_argument(
        '--name',
        action='append',
        default=[],
        help='further name under which browsers open the page, e.g. that of a proxy; may be repeated '
        '(default: localhost, the name of this computer, and addresses in numbers)',
    )
    parser.add_argument('--device', help='e.g. cuda:0 or cpu (default: the best device)')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    args = parser.parse_args()
    limits = (args.max_upload, args.max_pixels, args.slides, args.waiting)
    options = AppOptions(args.host, args.port, *limits, tuple(args.name))
    serve(load_config(args.config, args.cfg_options), args.checkpoint, options, args.device, args.amp)


if __name__ == '__main__':
    run(main)
