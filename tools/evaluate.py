"""Score without a model: a saved run again (--from), or label PNGs of any tool (--predictions)."""

import argparse

from mmseg_ignite.apis import read_groupings, rescore, score_folder
from mmseg_ignite.apis.arguments import add_bootstrap, add_report, report_language
from mmseg_ignite.cli import run
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation.bootstrap import SAMPLES
from mmseg_ignite.evaluation.label_files import ENCODINGS
from mmseg_ignite.evaluation.text_table import table

DATA = 'data/ignite'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--from', dest='saved', metavar='RUN', help='folder of a run, or its confusion.npz')
    source.add_argument(
        '--predictions', metavar='FOLDER', help='label PNGs, NAME.png (or all NAME_with_context.png) for each ROI'
    )
    parser.add_argument('--out', metavar='RUN', help='output folder (default with --from: that run)')
    parser.add_argument('--data', help=f'prepared data set (default: {DATA}; with --from: as the run states)')
    parser.add_argument('--protocol', default='patient-8-1-1', help='split protocol (default: %(default)s)')
    parser.add_argument('--split', default='test', help='its part (default: %(default)s)')
    parser.add_argument(
        '--encoding',
        choices=('auto', *ENCODINGS),
        default='auto',
        help='of the PNGs: raw ids 1..16, 0 for no prediction; train ids 0..15, 255 for no prediction (default: %(default)s)',
    )
    parser.add_argument(
        '--checkpoint',
        metavar='FILE',
        help='checkpoint, work dir or ensemble.json that predicted the PNGs; its training patients are refused',
    )
    parser.add_argument(
        '--allow-seen-patients', action='store_true', help='also score training patients of the checkpoint'
    )
    parser.add_argument(
        '--boundary-tolerance-um', type=float, metavar='UM', help='also score boundaries, with this tolerance'
    )
    parser.add_argument('--groupings', metavar='FILE.json', help='{grouping: {group: [class names] or "rest"}}')
    add_bootstrap(parser, SAMPLES)
    add_report(parser)
    args = parser.parse_args()
    options = dict(
        groupings=read_groupings(args.groupings) if args.groupings else None,
        samples=args.samples,
        seed=args.seed,
        report=report_language(args),
    )
    if args.saved:
        if args.boundary_tolerance_um is not None:
            raise IgniteError('--boundary-tolerance-um requires the label PNGs: score them with --predictions FOLDER.')
        result = rescore(args.saved, args.out, data=args.data, **options)
    else:
        if not args.out:
            raise IgniteError('--predictions requires an output folder: add --out RUN.')
        result = score_folder(
            args.predictions,
            args.data or DATA,
            args.out,
            args.protocol,
            args.split,
            args.encoding,
            boundary_tolerance_um=args.boundary_tolerance_um,
            checkpoint=args.checkpoint,
            allow_seen_patients=args.allow_seen_patients,
            **options,
        )
    if result.get('cropped'):
        print('note: the predictions with context were cropped to their ROIs.')
    print(
        f'{table(result)}\n\nwritten: {args.out or args.saved}' + ('' if args.no_report else ', see report.html in it')
    )


if __name__ == '__main__':
    run(main)
