"""HTTP for a long download: requests with time-outs, growing waits between tries, content as it was before transport."""

import http.client
import ssl
import time
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..errors import IgniteError
from ..version import __version__

TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as lost."""
TRIES = 10
"""Failures in a row, without a new byte, after which a file is given up: about four minutes of waiting."""
MAX_WAIT = 60.0
"""Longest back-off in seconds; it starts at one and doubles."""
MAX_RETRY_AFTER = 600.0
"""Longest wait in seconds that a server may ask for."""
CHUNK = 1 << 18


class Interrupted(Exception):
    """A failure that another try may overcome.

    Args:
        reason: for the message after the last try.
        wait: seconds the server asks for.
        restart: the bytes that are there cannot be gone on from.
    """

    def __init__(self, reason: object, wait: float = 0.0, restart: bool = False):
        super().__init__(str(reason) or type(reason).__name__)
        self.wait, self.restart = wait, restart


def check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ('http', 'https') and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise IgniteError(f'{url!r} is not an http(s) address, which was expected: check the address of the record.')


class _HttpRedirects(HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        check_url(newurl)  # urllib would follow to ftp
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for (a number or a date); 0 if it is absent or unreadable."""
    if value is None:
        return 0.0
    try:
        seconds = float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


class Client:
    """Requests with time-outs, and the waiting between them."""

    def __init__(self, sleep: Callable[[float], None], say: Callable[[str], None]):
        self.opener = build_opener(_HttpRedirects)
        self.opener.addheaders = [('User-Agent', f'mmseg_ignite/{__version__}')]
        self.sleep, self.say = sleep, say

    def open(self, url: str, start: int = 0) -> http.client.HTTPResponse:
        """Ask for the bytes from ``start`` on."""
        request = Request(
            url, headers={'Accept-Encoding': 'identity', **({'Range': f'bytes={start}-'} if start else {})}
        )
        try:
            return self.opener.open(request, timeout=TIMEOUT)
        except HTTPError as error:
            error.close()
            if error.code == 416 and start:
                raise Interrupted(f'no bytes from {start:,} on', restart=True) from error
            if error.code in (408, 429) or error.code >= 500:
                raise Interrupted(error, _retry_after(error.headers['Retry-After'])) from error
            raise IgniteError(
                f'{url} answers {error}; the file was expected: check the address in a browser, the record may have '
                'moved or be closed.'
            ) from error
        except (ValueError, http.client.InvalidURL) as error:
            raise IgniteError(f'{url!r} is not a usable address ({error}): check the address of the record.') from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, 'reason', error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise IgniteError(
                    f'{url}: the certificate of the server is not trusted ({reason}): correct the certificates of '
                    'this computer or fetch the files by another way.'
                ) from error
            raise Interrupted(reason) from error

    def pause(self, error: Interrupted, failures: int, what: str) -> None:
        """Wait before another try; give up with a sentence that begins with ``what`` after TRIES of them.

        The first failure in a row is silent if the wait is short: most connections that end early are back at once.
        """
        if failures >= TRIES:
            raise IgniteError(
                f'{what}: {TRIES} tries in a row failed, the last with: {error}; check the network and run the same '
                'command again, it goes on where this one stopped.'
            ) from error
        wait = max(min(2.0 ** (failures - 1), MAX_WAIT), error.wait)
        if failures > 1 or wait > 5:
            left = TRIES - failures
            self.say(f'{what}: {error}; the next of {left} more {"try" if left == 1 else "tries"} is in {wait:.0f} s.')
        self.sleep(wait)


class Body:
    """The content of an answer, decompressed where the server compresses it though it was asked not to.

    Args:
        response: whose body was not read yet.
        url: for messages.

    Raises:
        IgniteError: it is compressed otherwise than by gzip.
    """

    def __init__(self, response: http.client.HTTPResponse, url: str):
        coding = (response.headers['Content-Encoding'] or 'identity').strip().lower()
        if coding not in ('identity', 'gzip', 'x-gzip'):
            raise IgniteError(
                f'{url} is sent compressed as {coding!r}; the plain file, which was asked for, or gzip was expected: fetch '
                'it from another mirror, or with a browser into the folder of the release.'
            )
        self.response, self.expected = response, response.length
        self.inflater = None if coding == 'identity' else zlib.decompressobj(zlib.MAX_WBITS | 16)

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, none at the end.

        Raises:
            Interrupted: the connection failed, or the compressed bytes are damaged.
        """
        if self.inflater is None:
            return self._receive(size)
        try:
            while not self.inflater.eof:
                data = self.inflater.unconsumed_tail or self._receive(CHUNK)
                chunk = self.inflater.decompress(data, size)
                if chunk or not data:
                    return chunk
        except zlib.error as error:
            raise Interrupted(f'the compressed content is damaged ({error})', restart=True) from error
        return b''

    def read_all(self, most: int) -> bytes:
        """All bytes, of more than ``most`` only these.

        Raises:
            Interrupted: the connection failed or ended early.
        """
        content = bytearray()
        while len(content) < most and (chunk := self.read(most - len(content))):
            content += chunk
        if len(content) < most and self.inflater is not None and not self.inflater.eof:
            raise Interrupted(f'the connection ended after {len(content):,} bytes')
        if self.inflater is None and self.expected is not None and len(content) < min(self.expected, most):
            raise Interrupted(f'the connection ended after {len(content):,} of {self.expected:,} bytes')
        return bytes(content)

    def _receive(self, size: int) -> bytes:
        try:
            return self.response.read1(size)
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(error) from error
