"""Starting several processes on machines with and without CUDA, and ending them when one of them fails or hangs."""

import atexit
import contextlib
import gc
import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
from mmengine.config import Config

from ..errors import IgniteError
from .compatibility import process_store
from .launchers import launched_rank, use_launcher

TIMEOUT = 600
"""Default of ``env_cfg.dist_cfg.timeout`` in seconds: how long a process waits for the others before the run ends."""
_TIMED_OUT = re.compile(r'timed? ?out', re.IGNORECASE)
_LOST = re.compile(
    r'connection (?:closed|reset|refused)|broken pipe|failed to recv|remote process exited', re.IGNORECASE
)
_BUSY = re.compile(r'EADDRINUSE|address already in use', re.IGNORECASE)
_COLLECTIVE = re.compile(r'gloo|nccl', re.IGNORECASE)


def prepare_launch(cfg: Config) -> None:
    """Make a distributed run possible without CUDA, limit how long processes wait for each other, and end it cleanly.

    mmengine always selects a CUDA device, and torch's SyncBN requires CUDA: without CUDA the gloo group is started here, and
    SyncBN becomes :class:`ProcessBatchNorm <mmseg_ignite.models.normalisation.ProcessBatchNorm>`, which computes the same.
    mmengine itself starts all runs as those of torchrun, see :func:`.launchers.use_launcher`.

    Raises:
        IgniteError: the launcher did not start this process.
    """
    if cfg.get('launcher', 'none') == 'none':
        return
    atexit.register(_end_group)
    dist_cfg = _settings(cfg)
    if port := dist_cfg.pop('port', None):  # mmengine's setting for Slurm
        os.environ['MASTER_PORT'] = str(port)
    use_launcher(cfg.launcher)
    cfg.launcher = 'pytorch'
    cfg.env_cfg = {**(cfg.get('env_cfg') or {}), 'dist_cfg': dist_cfg}
    if torch.cuda.is_available():
        return
    cfg.env_cfg.dist_cfg.backend = 'gloo'
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=dist_cfg['timeout']))
    cfg.setdefault(
        'model_wrapper_cfg', dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    )
    _replace_sync_bn(cfg.model)


def _settings(cfg: Config) -> dict:
    """Return ``env_cfg.dist_cfg`` with a timeout."""
    settings = dict((cfg.get('env_cfg') or {}).get('dist_cfg') or dict(backend='nccl'))
    if settings.get('timeout') is None:
        settings['timeout'] = TIMEOUT
    return settings


@contextlib.contextmanager
def process_errors(cfg: Config) -> Iterator[None]:
    """Turn the exception of a process that waits in vain for another one into one sentence, printed by one process.

    An IgniteError that all processes raise is printed by one of them, too.

    With gloo, and while processes start, torch raises such an exception. With NCCL, torch's watchdog prints a report and ends
    the process after the same time.

    Args:
        cfg: config of the run, for its launcher and timeout.

    Raises:
        IgniteError: another process of the distributed run did not answer in time, or ended and reported no error.
        SystemExit: another process ended and has reported an error, or reports this one; the status is 2.
    """
    try:
        yield
    except Exception as error:
        if cfg.get('launcher', 'none') == 'none' or getattr(error, 'first_report', False):
            raise
        sentence, first = _sentence(error, _settings(cfg)['timeout']), _is_first_report()
        known = isinstance(error, IgniteError)
        if sentence is None and not known:
            raise
        if not first:
            raise SystemExit(2) from error
        report = error if known else IgniteError(sentence)
        report.first_report = True  # for a context around this one
        if known:
            raise
        raise report from error


def _sentence(error: Exception, timeout: float) -> str | None:
    """Return the sentence about an exception of torch.distributed about another process; None for other exceptions."""
    text = str(error)
    if not isinstance(error, torch.distributed.DistError) and not (
        isinstance(error, RuntimeError) and _COLLECTIVE.search(text)
    ):
        return None
    if _BUSY.search(text):
        return (
            f'the port {os.environ.get("MASTER_PORT")} of this machine is used by another run: set the environment variable '
            'MASTER_PORT (PORT of tools/dist_train.sh) to a free one.'
        )
    if _TIMED_OUT.search(text):
        return (
            f'a process of the distributed run has not answered for {timeout:g} s (env_cfg.dist_cfg.timeout), so the run '
            'ends: look for a process that is stopped or a machine that cannot be reached, then continue a training with '
            '--resume.'
        )
    if _LOST.search(text):
        return (
            'another process of the distributed run ended without an error message, as when memory runs out and the system '
            'kills it: look at the report of the launcher, then continue a training with --resume.'
        )
    return None


def _is_first_report() -> bool:
    """Return whether no other process of the group has reported an error; True if that is unknown."""
    return ask_store(lambda store: store.add('mmseg_ignite reports', 1)) in (None, 1)


def ask_store(question: Callable[[torch.distributed.Store], object], patience: float = 2.0) -> object:
    """Return the answer of the store that the processes share; None without one after ``patience`` seconds.

    It is asked in a thread, since the process that keeps the store may hang or have ended.
    """
    answers: list[object] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            answers.append(question(process_store()))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return answers[0] if answers else None


def _end_group() -> None:
    """Stop the threads of the group: a thread that still has a tensor when the interpreter exits aborts the process.

    Collect the runner's reference cycles, too, which keep the wrapped model and thereby the group alive.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


def _replace_sync_bn(node: object) -> None:
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'ProcessBatchNorm'
        node = list(node.values())
    for child in node if isinstance(node, (list, tuple)) else ():
        _replace_sync_bn(child)


def is_main_process() -> bool:
    """Return whether this process writes and prints for all; before the process group exists, by the launcher's variables."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return launched_rank() == 0
