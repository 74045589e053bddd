"""Train the five folds, score each on patients it has not seen, pool the scores, and make an ensemble of the folds."""

from mmseg_ignite.apis import cross_validate
from mmseg_ignite.apis.arguments import add_launcher, add_report, config_parser, report_language
from mmseg_ignite.cli import run


def main() -> None:
    parser = config_parser(__doc__, 'data_root reaches all data sets')
    parser.add_argument('--folds', type=int, default=5, help='number of folds: 5, as in the prepared data')
    parser.add_argument(
        '--fold',
        type=int,
        nargs='+',
        metavar='K',
        help='run only these folds, 0..4 (default: the one in SLURM_ARRAY_TASK_ID if set, else all)',
    )
    parser.add_argument(
        '--work-dir',
        help='folder for the pooled run, ensemble.json and a folder per fold (default: work_dirs/CONFIG_NAME-folds)',
    )
    parser.add_argument('--resume', action='store_true', help='continue unfinished folds from their latest checkpoints')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision, as tools/train.py')
    parser.add_argument(
        '--minutes', type=float, help="train each fold for this time instead of the config's number of iterations"
    )
    parser.add_argument(
        '--weights', metavar='FILE|URL|none', help="encoder weights instead of the config's; none: random"
    )
    add_report(parser)
    add_launcher(parser)
    args = parser.parse_args()
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
        report_language(args),
        args.launcher,
    )


if __name__ == '__main__':
    run(main)
