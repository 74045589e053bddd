"""Write a synthetic IGNITE release."""

import argparse

from rich.progress import Progress

from mmseg_ignite.cli import run
from mmseg_ignite.preparation import write_synthetic_release


def size(text: str) -> tuple[int, int]:
    height, width = text.lower().split('x')
    return int(height), int(width)


def rare(text: str) -> tuple[int, float]:
    class_id, share = text.split(':')
    return int(class_id), float(share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', required=True, help='output folder of the release')
    parser.add_argument('--rois', type=int, default=60)
    parser.add_argument('--patients', type=int, default=20)
    parser.add_argument('--size', type=size, default=(384, 384), metavar='HxW', help='ROI size in px')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--encoding', choices=['complement', 'direct'], default='complement', help='encoding of the ROI masks'
    )
    parser.add_argument(
        '--rare', type=rare, metavar='CLASS:SHARE', help='rare class (1..16) and its SHARE of all pixels'
    )
    args = parser.parse_args()
    with Progress() as progress:
        task = progress.add_task('rendering ROIs', total=args.rois)
        write_synthetic_release(
            args.out,
            args.rois,
            args.patients,
            args.size,
            args.seed,
            args.encoding,
            args.rare,
            lambda: progress.advance(task),
        )
    print(f'{args.rois} ROIs of {args.patients} patients are in {args.out}')


if __name__ == '__main__':
    run(main)
