"""Export a trained model, or an ensemble: ONNX, QuPath, BioImage.IO, Hugging Face, safetensors; check what was written."""

from mmseg_ignite.apis import export, load_config
from mmseg_ignite.apis.arguments import config_parser
from mmseg_ignite.cli import run
from mmseg_ignite.export.packages import FORMATS
from mmseg_ignite.models.onnx_file import OUTPUTS


def main() -> None:
    parser = config_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file, work dir of a training, or ensemble.json')
    parser.add_argument('--out', required=True, help='folder; each format gets a folder in it')
    names = '; '.join(f'{name}: {known.text}' for name, known in FORMATS.items())
    parser.add_argument(
        '--format',
        dest='formats',
        nargs='+',
        choices=FORMATS,
        default=['onnx'],
        metavar='FORMAT',
        help=f'what to write (default: onnx). {names}',
    )
    parser.add_argument(
        '--raw-input',
        dest='inputs',
        nargs='?',
        const='nhwc',
        default='normalised',
        choices=('nhwc', 'nchw'),
        help='the ONNX graph takes uint8 RGB images and normalises them itself (nhwc unless nchw is named)',
    )
    parser.add_argument(
        '--output', dest='outputs', choices=OUTPUTS, default='logits', help='of the ONNX graph (default: logits)'
    )
    parser.add_argument(
        '--metrics', metavar='FILE', help='metrics.json of a test, for the model card (default: beside the checkpoint)'
    )
    parser.add_argument('--images', nargs='+', default=[], metavar='FILE', help='tissue to compare the outputs on')
    parser.add_argument('--overwrite', action='store_true', help='replace packages of an earlier export')
    args = vars(parser.parse_args())
    export(load_config(args.pop('config'), args.pop('cfg_options')), args.pop('checkpoint'), args.pop('out'), **args)


if __name__ == '__main__':
    run(main)
