"""Convert weights of MiT and SegFormer between the names of mmseg, the authors and Hugging Face, and between file formats."""

import argparse

from mmseg_ignite.apis import convert_weights
from mmseg_ignite.cli import run
from mmseg_ignite.models.weight_names import LAYOUTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', metavar='IN', help='.pth, .bin or .safetensors file, or a folder of Hugging Face')
    parser.add_argument('out', metavar='OUT', help='new file; its suffix (.pth, .safetensors, .bin) says the format')
    parser.add_argument('--to', choices=LAYOUTS, default='mmseg', help='names of the output (default: %(default)s)')
    parser.add_argument('--encoder-only', action='store_true', help='leave out the decode head')
    args = parser.parse_args()
    print('\n'.join(convert_weights(args.source, args.out, args.to, args.encoder_only)))


if __name__ == '__main__':
    run(main)
