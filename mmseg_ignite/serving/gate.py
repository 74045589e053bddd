"""What the server answers: no request of it leaves the computer, and none is larger than expected."""

import contextlib
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import parse_qs

from .turns import Visitors

MAX_BODY = 1 << 20
"""Bytes of a request that is not an upload."""
_FORM_BYTES = 1 << 16
"""Bytes around a file in an upload."""
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = (
    (b'content-security-policy', _POLICY.encode()),
    (b'x-content-type-options', b'nosniff'),
    (b'referrer-policy', b'no-referrer'),
)
_REFUSED = re.compile(
    r'/(gradio_api/)?(proxy=|file(=|/)\w[\w+.-]*:|call/|run/|api/|component_server|stream/|runs|run-history|vibe|undo-vibe|process_recording|profiling|deep_link|monitoring)'
)
"""Routes of Gradio that the page does not use: they fetch other addresses, or call functions without the page."""
_PORT, _DEFAULT_PORT = re.compile(r':\d*$'), re.compile(r':(80|443)$')
_ADDRESS = re.compile(r'\w[\w+.-]*:', re.ASCII)

Scope, Receive, Send = dict, Callable[[], Awaitable[dict]], Callable[[dict], Awaitable[None]]


class Gate:
    """ASGI middleware around Gradio's application.

    It refuses the routes that the page does not use, large requests, and files that are named by an address: Gradio would
    download them. A policy in the answers keeps the browser from loading anything from elsewhere. Pages of other servers get
    no answer: neither by requests of their own, nor under a name that they let point to this computer (DNS rebinding).

    Args:
        app: the application.
        max_upload: largest upload in bytes.
        names: names under which the page may be opened, besides localhost and addresses in numbers.
        visitors: record of who listens for results.
    """

    def __init__(self, app: Callable, max_upload: int, names: Collection[str], visitors: Visitors) -> None:
        self.app, self.max_upload, self.visitors = app, max_upload, visitors
        self.names = {'localhost', *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        path, headers = scope['path'], dict(scope['headers'])
        if fault := self._foreign(headers):
            await _answer(send, 403, fault)
            return
        if _REFUSED.match(path):
            await _answer(send, 403, 'this server does not offer that.')
            return
        stated = headers.get(b'content-length', b'0')
        upload = path.rstrip('/').endswith('/upload')
        limit = self.max_upload + _FORM_BYTES if upload else MAX_BODY
        if not stated.isdigit() or int(stated) > limit:
            await _answer(send, 413, f'the request is larger than {limit:,} bytes.')
            return
        if scope['method'] == 'POST' and not upload:
            body = await _body(receive, limit)
            if body is None or _names_address(body):
                await _answer(send, 403, 'the request is too large, or names a file by an address.')
                return
            receive = _repeated(body, receive)

        async def protected(event: dict) -> None:
            if event['type'] == 'http.response.start':
                event['headers'] = [*event.get('headers', ()), *_HEADERS]
            await send(event)

        with self._counted(scope):
            await self.app(scope, receive, protected)

    def _foreign(self, headers: dict[bytes, bytes]) -> str | None:
        """Return a sentence if a request is for another name than those of this server, or from another's page."""
        host, origin = (headers.get(name, b'').decode('latin-1').lower() for name in (b'host', b'origin'))
        name = _PORT.sub('', host)
        if name not in self.names and not _is_address(name):
            return 'this server does not know the name in the address: add it with --name, or use localhost or numbers.'
        if origin and _DEFAULT_PORT.sub('', origin.partition('://')[2]) != _DEFAULT_PORT.sub('', host):
            return 'the request comes from the page of another server.'
        return None

    def _counted(self, scope: Scope) -> contextlib.AbstractContextManager:
        """Tell ``visitors`` of a listener while a request for results is open."""
        session = parse_qs(scope.get('query_string', b'').decode('latin-1')).get('session_hash')
        if session and scope['path'].rstrip('/').endswith('/queue/data'):
            return self.visitors.listening(session[0])
        return contextlib.nullcontext()


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name.strip('[]')))
    except ValueError:
        return False


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({'detail': text, 'error': text}).encode()
    headers = [(b'content-type', b'application/json'), (b'content-length', str(len(body)).encode())]
    await send({'type': 'http.response.start', 'status': status, 'headers': headers})
    await send({'type': 'http.response.body', 'body': body})


async def _body(receive: Receive, limit: int) -> bytes | None:
    """Return the body of a request; None if it is larger than the limit."""
    body, more = b'', True
    while more:
        event = await receive()
        body, more = body + event.get('body', b''), event.get('more_body', False)
        if len(body) > limit:
            return None
    return body


def _repeated(body: bytes, receive: Receive) -> Receive:
    """Return a function that gives the body once, and then what follows."""
    given = False

    async def again() -> dict:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {'type': 'http.request', 'body': body, 'more_body': False}

    return again


def _names_address(body: bytes) -> bool:
    """Return whether JSON has a key 'path' whose value is an address, at any depth."""
    try:
        left = [json.loads(body or b'null')]
    except (ValueError, RecursionError):
        return False  # Gradio reports it
    while left:
        found = left.pop()
        if isinstance(found, dict):
            if isinstance(path := found.get('path'), str) and _ADDRESS.match(path.strip()):
                return True
            left += found.values()
        elif isinstance(found, list):
            left += found
    return False
