"""Compare two runs on the same ROIs: is B better than A, by how much, and with which confidence interval."""

import argparse

from mmseg_ignite.apis import compare_runs
from mmseg_ignite.apis.arguments import add_bootstrap
from mmseg_ignite.cli import run
from mmseg_ignite.evaluation.bootstrap import SAMPLES
from mmseg_ignite.evaluation.comparison import comparison_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('a', metavar='RUN_A', help='run folder or its confusion.npz')
    parser.add_argument('b', metavar='RUN_B', help='run folder or confusion.npz of the other run')
    parser.add_argument('--out', metavar='FILE.json', help='write the scores to this file')
    add_bootstrap(parser, SAMPLES)
    parser.add_argument(
        '--allow-seen-patients',
        action='store_true',
        help='compare runs even if a checkpoint was trained on their patients',
    )
    args = parser.parse_args()
    result = compare_runs(args.a, args.b, args.out, args.samples, args.seed, args.allow_seen_patients)
    print(comparison_table(result, args.a, args.b))


if __name__ == '__main__':
    run(main)
