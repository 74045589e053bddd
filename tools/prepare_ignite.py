"""Prepare an IGNITE release for training: check it, decode it once, split it by patient."""

import argparse

from mmseg_ignite.cli import run
from mmseg_ignite.preparation import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--release', required=True, help='unpacked release, with data_overview.csv in it')
    parser.add_argument('--out', default='data/ignite', help='folder of the prepared data set (default: %(default)s)')
    args = parser.parse_args()
    prepare(args.release, args.out)
    print(f'prepared data set: {args.out}')


if __name__ == '__main__':
    run(main)
