"""Inspect the data before training: crops as the network sees them, figures of classes and stains, one HTML page."""

from mmseg_ignite.apis import browse, load_config
from mmseg_ignite.apis.arguments import config_parser
from mmseg_ignite.cli import run


def main() -> None:
    parser = config_parser(__doc__)
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the pictures and dataset.html')
    parser.add_argument('--crops', type=int, default=48, help='number of crops to show (default: %(default)s)')
    parser.add_argument(
        '--draws', type=int, default=10_000, help='number of crops whose labels are counted (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the crops (default: %(default)s)')
    args = parser.parse_args()
    page = browse(load_config(args.config, args.cfg_options), args.out, args.crops, args.draws, args.seed)
    print(f'open in a browser: {page}')


if __name__ == '__main__':
    run(main)
