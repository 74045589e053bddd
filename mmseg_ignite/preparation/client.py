"""HTTP requests for long downloads: time-outs, growing waits between tries, and errors that tell whether to retry."""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from typing import NamedTuple

import requests
import urllib3
from requests.adapters import HTTPAdapter

from ..errors import IgniteError
from ..version import __version__

TIMEOUT = 60.0  # seconds without a byte after which a connection counts as lost
TRIES = 10  # failures in a row, without a new byte, before a download stops: about four minutes of waiting
MAX_WAIT = 60.0  # longest back-off in seconds; it starts at one second and doubles
MAX_RETRY_AFTER = 600.0  # longest wait in seconds that a server may request
# Only its rules are used. As an adapter's `max_retries` it would count every request separately, wait without telling
# the user, and not resume a body that was cut.
_RULES = urllib3.Retry(status_forcelist=(408, 429, *range(500, 600)))


class RemoteFile(NamedTuple):
    """A file of the record: size in bytes, MD5 as lower-case hex."""

    name: str
    size: int
    md5: str
    url: str


class Interrupted(Exception):
    """A failure that another try may overcome, after ``wait`` s and, if ``restart``, without the partial file."""

    def __init__(self, reason: str, wait: float = 0.0, restart: bool = False):
        super().__init__(reason)
        self.wait, self.restart = wait, restart


class _Adapter(HTTPAdapter):
    """Trust the certificates of the system in addition to those of certifi: hospital proxies often have their own."""

    def init_poolmanager(self, *args, **kwargs):
        super().init_poolmanager(*args, ssl_context=ssl.create_default_context(), **kwargs)

    def proxy_manager_for(self, proxy, **kwargs):
        return super().proxy_manager_for(proxy, ssl_context=ssl.create_default_context(), **kwargs)


class Client:
    """Send GET requests; wait by ``sleep(seconds)`` between tries and announce it by ``on_message(text)``."""

    def __init__(self, sleep: Callable[[float], None], on_message: Callable[[str], None]):
        self.session = requests.Session()
        self.session.headers = {'User-Agent': f'mmseg_ignite/{__version__}', 'Accept-Encoding': 'identity'}
        self.session.mount('https://', _Adapter())
        self.sleep, self.on_message = sleep, on_message

    @contextlib.contextmanager
    def get(self, url: str, start: int = 0) -> Iterator[urllib3.BaseHTTPResponse]:
        """Request the bytes from ``start`` on; raise Interrupted if another try may succeed, else IgniteError."""
        headers = {'Range': f'bytes={start}-'} if start else {}
        try:
            with self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                _check_response(response, url, start)
                yield response.raw
        except urllib3.exceptions.DecodeError as error:
            raise Interrupted(f'the compressed content is damaged ({_root(error)})', restart=True) from error
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            reason = _root(error)
            if not isinstance(reason, ssl.SSLCertVerificationError):
                raise Interrupted(str(reason) or type(reason).__name__) from error
            raise IgniteError(
                f'{url}: the certificate of the server is not trusted ({reason}): correct the certificates of this '
                'computer, or fetch the files in another way.'
            ) from error
        except requests.RequestException as error:
            raise IgniteError(f'{url!r} cannot be requested ({error}): check the http(s) address.') from error

    def pause(self, error: Interrupted, failures: int, what: str) -> None:
        """Wait before the next try, or raise IgniteError with a sentence that starts with ``what`` after TRIES failures.

        A short wait after a first failure is not announced: most lost connections are back at once.
        """
        if failures >= TRIES:
            raise IgniteError(
                f'{what}: {TRIES} tries in a row failed, the last with: {error}; check the network and run the same '
                'command again to continue.'
            ) from error
        wait = max(min(2.0 ** (failures - 1), MAX_WAIT), error.wait)
        if failures > 1 or wait > 5:
            left = '1 more try' if failures == TRIES - 1 else f'{TRIES - failures} more tries'
            self.on_message(f'{what}: {error}; {left}, the next in {wait:.0f} s.')
        self.sleep(wait)


def _root(error: BaseException) -> BaseException:
    """Return the first cause: requests and urllib3 wrap it in long texts."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _check_response(response: requests.Response, url: str, start: int) -> None:
    """Raise Interrupted or IgniteError unless the response has the file, as it is or compressed by gzip."""
    answer = f'HTTP {response.status_code} {response.reason}'
    if response.status_code == 416 and start:
        raise Interrupted(f'the server has no bytes from {start:,} on', restart=True)
    if _RULES.is_retry('GET', response.status_code):
        raise Interrupted(answer, _retry_after(response.raw))
    if not response.ok:
        raise IgniteError(
            f'{url} answers {answer} instead of the file: open the address in a browser to see whether it has moved '
            'or is closed.'
        )
    # Servers may compress although "identity" was requested. urllib3 takes the header as it is, spaces included.
    coding = response.headers.get('Content-Encoding', 'identity').strip().lower()
    if coding not in ('identity', 'gzip', 'x-gzip'):
        raise IgniteError(
            f'{url} is sent compressed as {coding!r}; the plain file or gzip was expected: fetch it from a mirror, or '
            'with a browser into the folder of the release.'
        )
    response.raw.headers['Content-Encoding'] = coding


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
    """Return the seconds that a Retry-After header asks for; 0 if it is missing or unreadable."""
    try:
        return min(_RULES.get_retry_after(response) or 0.0, MAX_RETRY_AFTER)
    except (urllib3.exceptions.HTTPError, ValueError, OverflowError):
        return 0.0
