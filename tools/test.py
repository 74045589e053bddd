"""Score a checkpoint, or an ensemble of several, on the test split."""

import argparse
import os

from mmseg_ignite.apis import load_config, test
from mmseg_ignite.apis.options import add_options_argument
from mmseg_ignite.cli import run
from mmseg_ignite.datasets.transforms.shift import SHIFTS
from mmseg_ignite.engine.distributed import is_main_process
from mmseg_ignite.evaluation.text_table import table
from mmseg_ignite.report import LANGUAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, work dir of a training, or ensemble.json')
    parser.add_argument(
        '--work-dir', help='folder for metrics.json, report.html, predictions (default: work_dirs/CONFIG_NAME)'
    )
    parser.add_argument('--out', help='folder for the label PNGs instead, with an overlay of each ROI')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--allow-seen-patients',
        action='store_true',
        help='test patients that the checkpoint was trained on all the same',
    )
    parser.add_argument(
        '--shift',
        choices=SHIFTS,
        help='test the images as if another laboratory had stained (lab), lit (lab-tinted) or scanned (scanner) them',
    )
    parser.add_argument('--language', choices=LANGUAGES, default='en', help='shown first in the report (default: en)')
    parser.add_argument('--no-report', action='store_true', help='write no report.html and no figures')
    add_options_argument(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    language = None if args.no_report else args.language
    result = test(cfg, args.checkpoint, args.out, language, args.amp, args.allow_seen_patients, shift=args.shift)
    if is_main_process():
        print(f'\n{table(result)}\n\nmetrics: {cfg.work_dir}/metrics.json')
        if not args.no_report:
            print(f'report: {cfg.work_dir}/report.html\nfigures: {cfg.work_dir}/figures')
        if 'predictions' in result:
            print(f'predictions: {result["predictions"]}')


if __name__ == '__main__':
    run(main)
