"""Train the five folds, score each on the patients it has not seen, pool the scores, make an ensemble of the folds."""

import argparse
import os

from mmseg_ignite.apis import cross_validate
from mmseg_ignite.apis.options import add_options_argument
from mmseg_ignite.cli import run
from mmseg_ignite.report import LANGUAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--folds', type=int, default=5, help='how many there are: 5, as in the prepared data')
    parser.add_argument(
        '--fold',
        type=int,
        nargs='+',
        metavar='K',
        help='run only these, 0..4 (default: that of SLURM_ARRAY_TASK_ID, where set, else all)',
    )
    parser.add_argument(
        '--work-dir',
        help='folder for the run of all folds, ensemble.json and a folder a fold (default: work_dirs/CONFIG_NAME-folds)',
    )
    parser.add_argument('--resume', action='store_true', help='go on with begun folds from their newest checkpoints')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision, as tools/train.py')
    parser.add_argument('--minutes', type=float, help="train each fold so long, instead of the config's iterations")
    parser.add_argument('--weights', metavar='FILE|none', help="encoder weights instead of the config's; none: random")
    parser.add_argument('--language', choices=LANGUAGES, default='en', help='shown first in the reports (default: en)')
    parser.add_argument('--no-report', action='store_true', help='write no report.html and no figures')
    add_options_argument(parser, 'data_root reaches all data sets')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cross_validate(
        args.config,
        args.work_dir,
        args.cfg_options,
        args.folds,
        args.fold,
        args.resume,
        args.amp,
        args.weights,
        args.minutes,
        None if args.no_report else args.language,
        args.launcher,
    )


if __name__ == '__main__':
    run(main)
