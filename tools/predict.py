"""Label images: a PNG of class ids 1..16 and an overlay with legend for each."""

import argparse

from mmseg_ignite.apis import Predictor, load_config, predict_files
from mmseg_ignite.apis.options import add_options_argument
from mmseg_ignite.cli import run
from mmseg_ignite.errors import IgniteError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or ensemble.json of several')
    parser.add_argument('images', nargs='+', metavar='IMAGE|FOLDER')
    parser.add_argument('--out', required=True, help='folder for the results')
    parser.add_argument('--device', help='e.g. cuda:0 or cpu (default: the best there is)')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    add_options_argument(parser)
    args = parser.parse_args()
    predictor = Predictor(load_config(args.config, args.cfg_options), args.checkpoint, args.device, args.amp)
    faults = predict_files(predictor, args.images, args.out)
    if faults:
        raise IgniteError(f'{len(faults)} image(s) were skipped, the others are in {args.out}: {faults[0]}')


if __name__ == '__main__':
    run(main)
