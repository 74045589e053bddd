"""Starting the page: temporary files, Gradio's settings, and the end."""

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config

from ..apis.predictor import Predictor
from ..errors import IgniteError
from ..extras import import_extra
from .gate import Gate
from .options import AppOptions
from .page import STYLE, build_page
from .predictions import Predictions
from .turns import Turns, Visitors

_SETTINGS = {
    'GRADIO_ANALYTICS_ENABLED': 'False',
    'GRADIO_RUN_HISTORY': 'False',
    'HF_HUB_DISABLE_TELEMETRY': '1',
    'HF_HUB_OFFLINE': '1',
}
"""Nothing leaves the computer."""
_END = 5.0
"""Seconds within which a running prediction ends, at its next batch of windows."""
_FONTS = ('system-ui', 'sans-serif')


def _say(text: str) -> None:
    print(text, flush=True)  # a log file would get it only at the end


def serve(
    cfg: Config,
    checkpoint: str | Path,
    options: AppOptions,
    device: str | None = None,
    amp: bool = False,
    report: Callable[[str], None] = _say,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        cfg: config of the model; it is not changed.
        checkpoint, device, amp: see :class:`mmseg_ignite.apis.Predictor`.
        options: address and limits.
        report: called with a line of text.

    Raises:
        IgniteError: the model cannot be loaded, a package is not installed, or the port is in use.
        KeyboardInterrupt: as an end.

    Example:
        >>> serve(load_config(config), 'work_dirs/b0', AppOptions(slides='slides'))
        open http://127.0.0.1:7860 in a browser; Ctrl-C stops the server.
    """
    import_extra('gradio', 'the page', 'app')
    with running(Predictor(cfg, checkpoint, device, amp), options) as address:
        if not options.is_loopback:
            report(
                f'warning: everybody who reaches {options.host} can use the page and see the slides: there is no password. '
                'Put it behind a proxy that asks for one (docs/app.md).'
            )
        report(f'open {address} in a browser; Ctrl-C stops the server.')
        threading.Event().wait()


@contextmanager
def running(predictor: Predictor, options: AppOptions) -> Iterator[str]:
    """Serve the page in threads of this process while the block runs; its temporary files are deleted afterwards.

    Args:
        predictor: the model.
        options: address and limits.

    Yields:
        The address of the page.

    Raises:
        IgniteError: a package is not installed, or the port is in use.

    Example:
        >>> with running(predictor, AppOptions(port=0)) as address:
        ...     webbrowser.open(address)
    """
    port = _checked_port(options)
    with tempfile.TemporaryDirectory(prefix='mmseg-ignite-app-') as folder, _environment(folder):
        gradio = import_extra('gradio', 'the page', 'app')
        turns, visitors = Turns(options.waiting), Visitors()
        page = build_page(gradio, Predictions(predictor, options, Path(folder) / 'results'), turns, visitors)
        gate = dict(max_upload=options.max_upload_bytes, visitors=visitors)
        gate |= dict(names=(options.host, socket.gethostname(), *options.names))
        middleware = import_extra('starlette.middleware', 'the page', 'app').Middleware
        try:
            page.launch(
                server_name=options.host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                inbrowser=False,
                footer_links=[],
                allowed_paths=[],
                state_session_capacity=32,
                max_file_size=options.max_upload_bytes,
                enable_monitoring=False,
                app_kwargs=dict(
                    middleware=[middleware(Gate, **gate)],
                    docs_url=None,
                    redoc_url=None,
                    openapi_url=None,
                ),
                css=STYLE,
                theme=gradio.themes.Default(
                    primary_hue='blue', neutral_hue='slate', font=_FONTS, font_mono=('ui-monospace', 'monospace')
                ),
            )
            host = 'localhost' if options.host in ('0.0.0.0', '::') else options.host
            yield f'http://{f"[{host}]" if ":" in host else host}:{port}/'
        finally:
            visitors.end()
            turns.wait_for_the_end(_END)
            page.close(verbose=False)


def _checked_port(options: AppOptions) -> int:
    """Return the port, or a free one for 0; raise IgniteError if it cannot be used."""
    try:
        kind, *_, place = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
            return trial.getsockname()[1]
    except OSError as error:
        raise IgniteError(
            f'port {options.port} of {options.host} cannot be used ({error.strerror or error}): choose another with --port, '
            'or correct --host.'
        ) from error


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """Set the variables that Gradio reads and remove its others, which may open the server further; restore them."""
    settings = {**_SETTINGS, 'GRADIO_TEMP_DIR': folder, 'GRADIO_EXAMPLES_CACHE': os.path.join(folder, 'examples')}
    before = {name: value for name, value in os.environ.items() if name.startswith('GRADIO_') or name in settings}
    for name in before:
        del os.environ[name]
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
        os.environ.update(before)
