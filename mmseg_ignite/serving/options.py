"""How the page is served, and what it accepts."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from ..errors import IgniteError
from ..files import printable

MAX_UPLOAD_MB = 100.0
MAX_PIXELS = 1 << 26
"""8192 x 8192 px: some minutes on a CPU."""
MAX_WAITING = 16


@dataclass(frozen=True)
class AppOptions:
    """How the page is served, and what it accepts.

    Attributes:
        host: address to listen on. Any but a loopback address lets other computers in, without a password.
        port: 1 to 65535, or 0 for a free one.
        max_upload: largest upload, MB.
        max_pixels: largest image or region that is predicted.
        slides: folder whose slides can be chosen; None: only uploads.
        waiting: predictions that may wait while one runs, 0 to 16; further ones are refused.
        names: further names under which browsers open the page, e.g. that of a proxy.

    Raises:
        IgniteError: a value is out of range, or the folder does not exist.

    Example:
        >>> AppOptions(port=0, slides='slides').is_loopback
        True
    """

    host: str = '127.0.0.1'
    port: int = 7860
    max_upload: float = MAX_UPLOAD_MB
    max_pixels: int = MAX_PIXELS
    slides: str | Path | None = None
    waiting: int = 4
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ('--port', self.port, 0, 65535),
            ('--max-upload', self.max_upload, 0.01, 10_000),
            ('--max-pixels', self.max_pixels, 1024, 1 << 30),
            ('--waiting', self.waiting, 0, MAX_WAITING),
        ):
            if not low <= value <= high:
                raise IgniteError(f'{name} is {value}; {low:,} to {high:,} was expected: correct it.')
        if self.slides is not None and not Path(self.slides).is_dir():
            raise IgniteError(f'{printable(self.slides)} is not a folder; a folder of slides was expected.')

    @property
    def is_loopback(self) -> bool:
        """Whether only this computer can open the page."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == 'localhost'

    @property
    def max_upload_bytes(self) -> int:
        """Largest upload in bytes; a MB has 1e6."""
        return int(self.max_upload * 1e6)
