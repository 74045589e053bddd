"""Score a checkpoint, or an ensemble of several, on the test split."""

from mmseg_ignite.apis import load_config, test
from mmseg_ignite.apis.arguments import add_launcher, add_report, config_parser, report_language
from mmseg_ignite.cli import run
from mmseg_ignite.datasets.transforms.shift import SHIFTS
from mmseg_ignite.engine.distributed import is_main_process
from mmseg_ignite.evaluation.text_table import table


def main() -> None:
    parser = config_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file, work dir of a training, or ensemble.json')
    parser.add_argument(
        '--work-dir', help='folder for metrics.json, report.html, predictions (default: work_dirs/CONFIG_NAME)'
    )
    parser.add_argument('--out', help='another folder for the label PNGs, with an overlay of each ROI')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--compile', action='store_true', help='compile encoder and decoder first (half a minute or more)'
    )
    parser.add_argument(
        '--allow-seen-patients',
        action='store_true',
        help='also score patients that the checkpoint was trained on',
    )
    parser.add_argument(
        '--shift',
        choices=SHIFTS,
        help='test the images as if another laboratory had stained (lab), lit (lab-tinted) or scanned (scanner) them',
    )
    add_report(parser)
    add_launcher(parser)
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    language = report_language(args)
    if args.compile and is_main_process():
        print('compiling encoder and decoder, which takes half a minute or more')
    options = dict(shift=args.shift, compile=args.compile)
    result = test(cfg, args.checkpoint, args.out, language, args.amp, args.allow_seen_patients, **options)
    if is_main_process():
        print(f'\n{table(result)}\n\nmetrics: {cfg.work_dir}/metrics.json')
        if language:
            print(f'report: {cfg.work_dir}/report.html\nfigures: {cfg.work_dir}/figures')
        if 'predictions' in result:
            print(f'predictions: {result["predictions"]}')


if __name__ == '__main__':
    run(main)
