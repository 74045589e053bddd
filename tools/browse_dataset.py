"""Inspect the data before training: crops as the network sees them, figures of classes and stains, one HTML page."""

import argparse

from mmseg_ignite.apis import browse, load_config
from mmseg_ignite.apis.options import add_options_argument
from mmseg_ignite.cli import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the pictures and dataset.html')
    parser.add_argument('--crops', type=int, default=48, help='number of crops to show (default: %(default)s)')
    parser.add_argument(
        '--draws', type=int, default=10_000, help='number of crops whose labels are counted (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the crops (default: %(default)s)')
    add_options_argument(parser)
    args = parser.parse_args()
    page = browse(load_config(args.config, args.cfg_options), args.out, args.crops, args.draws, args.seed)
    print(f'open in a browser: {page}')


if __name__ == '__main__':
    run(main)
