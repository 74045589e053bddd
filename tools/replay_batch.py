"""Repeat a training step whose loss was NaN or infinite: print where that comes from, and draw its crops."""

from mmseg_ignite.apis import load_config, replay
from mmseg_ignite.apis.arguments import config_parser
from mmseg_ignite.apis.replaying import replay_text
from mmseg_ignite.cli import run


def main() -> None:
    parser = config_parser(__doc__)
    parser.add_argument('batch', help='nonfinite_batch_ITER.json in the work dir of the training')
    parser.add_argument('checkpoint', nargs='?', help='other weights (default: those before the step)')
    parser.add_argument('--device', default='cpu', help='e.g. cuda:0 (default: %(default)s)')
    parser.add_argument('--out', metavar='DIR', help='folder for the picture of the crops (default: that of BATCH)')
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options)
    print(replay_text(replay(cfg, args.batch, args.checkpoint, args.device, args.out)))


if __name__ == '__main__':
    run(main)
