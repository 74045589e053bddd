"""Train a segmentor."""

from pathlib import Path

from mmseg_ignite.apis import load_config, train
from mmseg_ignite.apis.arguments import add_launcher, config_parser
from mmseg_ignite.cli import run
from mmseg_ignite.engine.distributed import is_main_process


def main() -> None:
    parser = config_parser(__doc__)
    parser.add_argument('--work-dir', help='folder for checkpoints and logs (default: work_dirs/CONFIG_NAME)')
    parser.add_argument('--resume', action='store_true', help='continue from the latest checkpoint of the work dir')
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier training in the work dir')
    parser.add_argument('--amp', action='store_true', help='mixed precision: bfloat16, or float16 on older GPUs')
    parser.add_argument(
        '--minutes', type=float, help="train for this time instead of the config's number of iterations"
    )
    parser.add_argument(
        '--tensorboard', action='store_true', help='also log to TensorBoard: tensorboard --logdir WORK_DIR'
    )
    parser.add_argument(
        '--weights', metavar='FILE|URL|none', help="encoder weights instead of the config's; none: random"
    )
    add_launcher(parser)
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    train(cfg, args.resume, args.amp, args.weights, args.tensorboard, args.minutes, args.overwrite)
    if is_main_process():
        curves = ' and curves.png' if (Path(cfg.work_dir) / 'curves.png').is_file() else ''
        print(f'checkpoints, logs{curves}: {cfg.work_dir}')


if __name__ == '__main__':
    run(main)
