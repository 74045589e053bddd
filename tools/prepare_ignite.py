"""Prepare an IGNITE release for training: download it if requested, audit it, decode it once, split it by patient.

With --verify, compare a prepared data set with its checksums instead.
"""

import argparse

from mmseg_ignite.apis import prepare, verify
from mmseg_ignite.cli import run
from mmseg_ignite.preparation import audit, download_release
from mmseg_ignite.preparation.download import RECORD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument('--release', metavar='DIR', help='unpacked release, contains data_overview.csv')
    task.add_argument(
        '--verify', action='store_true', help='check every array of OUT against the index and its checksum'
    )
    parser.add_argument('--out', default='data/ignite', help='folder of the prepared data set (default: %(default)s)')
    parser.add_argument(
        '--download', action='store_true', help='download the H&E part of the release from Zenodo into DIR, or continue'
    )
    parser.add_argument('--record', default=RECORD, metavar='URL', help='record to download (default: %(default)s)')
    parser.add_argument('--audit-only', action='store_true', help='list all faults without preparing anything')
    parser.add_argument('--exclude', nargs='+', default=[], metavar='NAME', help='skip these ROIs')
    parser.add_argument('--drop-faulty', action='store_true', help='skip every ROI with an error')
    parser.add_argument('--no-context', action='store_true', help='skip the tissue around the ROIs to save disk space')
    parser.add_argument(
        '--label-map',
        metavar='FILE',
        help='JSON {name or id in the release: our id, 0..16}, if the masks hold other ids',
    )
    args = parser.parse_args()
    if args.verify:
        if args.download or args.audit_only:
            parser.error('--verify reads the prepared data set only: omit --download and --audit-only')
        verify(args.out)
        print(f'verified: {args.out}')
        return
    options = dict(
        exclude=args.exclude, drop_faulty=args.drop_faulty, context=not args.no_context, label_map=args.label_map
    )
    if args.download:
        download_release(args.release, args.record)
    if args.audit_only:
        audit(args.release, args.out, **options)
        return
    prepare(args.release, args.out, **options)
    print(f'prepared data set: {args.out}')


if __name__ == '__main__':
    run(main)
