"""Command-line arguments shared by several tools."""

import argparse
import os

from ..errors import IgniteError
from ..report import LANGUAGES
from .options import OptionText


class _Options(argparse.Action):
    """Collect ``KEY=VALUE`` arguments as {key: OptionText}."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: object = None
    ) -> None:
        found = dict(getattr(namespace, self.dest) or {})
        for item in values:
            key, equals, text = item.partition('=')
            if not key or not equals:
                raise IgniteError(f'{option} got {item!r}; KEY=VALUE was expected, e.g. data_root=data/ignite.')
            found[key] = OptionText(text)
        setattr(namespace, self.dest, found)


def _local_rank(text: str) -> int:
    """Pass the rank, an argument of older launchers, to mmengine, which reads it from the environment."""
    rank = int(text)
    os.environ.setdefault('LOCAL_RANK', str(rank))
    return rank


def config_parser(
    description: str, note: str = 'data_root and protocol apply to all data sets'
) -> argparse.ArgumentParser:
    """Return a parser with a config file and ``--cfg-options``; ``note`` ends the help of the options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        default={},
        metavar='KEY=VALUE',
        help=f'override settings of the config; +KEY=VALUE adds a setting that it does not know; {note}',
    )
    return parser


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a distributed run."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=_local_rank, default=0)


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add ``--language`` and ``--no-report``, see :func:`report_language`."""
    parser.add_argument('--language', choices=LANGUAGES, default='en', help='shown first in the report (default: en)')
    parser.add_argument('--no-report', action='store_true', help='write no report.html and no figures')


def report_language(args: argparse.Namespace) -> str | None:
    """Return the language of the report; None for no report."""
    return None if args.no_report else args.language


def add_bootstrap(parser: argparse.ArgumentParser, samples: int) -> None:
    """Add ``--samples`` and ``--seed`` of the bootstrap."""
    parser.add_argument(
        '--samples', type=int, default=samples, help='bootstrap samples, 0 for no intervals (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the bootstrap (default: %(default)s)')
