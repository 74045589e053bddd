"""Compare two runs on the same ROIs: whether B is better than A, by how much, and how certain that is."""

import argparse

from mmseg_ignite.apis import compare_runs
from mmseg_ignite.apis.arguments import add_bootstrap
from mmseg_ignite.cli import run
from mmseg_ignite.evaluation.bootstrap import SAMPLES
from mmseg_ignite.evaluation.comparison import comparison_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('a', metavar='RUN_A', help='folder of a run, or its confusion.npz')
    parser.add_argument('b', metavar='RUN_B', help='folder of the other run, or its confusion.npz')
    parser.add_argument('--out', metavar='FILE.json', help='write the figures')
    add_bootstrap(parser, SAMPLES)
    parser.add_argument(
        '--allow-seen-patients',
        action='store_true',
        help='compare runs even if a checkpoint was trained on patients that it scored',
    )
    args = parser.parse_args()
    result = compare_runs(args.a, args.b, args.out, args.samples, args.seed, args.allow_seen_patients)
    print(comparison_table(result, args.a, args.b))


if __name__ == '__main__':
    run(main)
