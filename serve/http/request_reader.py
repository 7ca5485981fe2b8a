"""h11's reading of requests, which refuses what is ambiguous or too long and remembers why."""

import re
from typing import NoReturn
from urllib.parse import urlsplit

import h11

MAX_HEAD = 32 * 1024  # bytes of a request's head
MAX_HEADERS = 100
_BLANK = re.compile(rb"\n\r?\n")
_FEW_CHUNKS, _LEAST_CHUNK = 256, 256  # past so many chunks they must hold so many bytes each


class RequestReader(h11.Connection):
    """A server's side of one connection."""

    fault: h11.RemoteProtocolError | None = None
    _chunks = _bytes = 0  # of the body

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        given = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        before = len(given)
        try:
            _measure(given)
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._chunks = self._bytes = 0
                return self._checked(event, before - len(self.trailing_data[0]))
            if isinstance(event, h11.Data):
                self._count(event)
        except h11.RemoteProtocolError as error:
            self.fault = error
            if error.error_status_hint == 431:
                self.fault = h11.RemoteProtocolError(
                    f"a request's head is at most {MAX_HEAD} bytes and {MAX_HEADERS} headers", 431
                )
            raise
        return event

    def _checked(self, request: h11.Request, size: int) -> h11.Request:
        """The request, whose target is a path. size: bytes of its head."""
        names = [name for name, _ in request.headers]
        if size > MAX_HEAD or len(names) > MAX_HEADERS:
            _refuse("too large", 431)
        if request.http_version not in (b"1.0", b"1.1"):
            _refuse("this server speaks HTTP/1.1 and HTTP/1.0", 505)
        if b"transfer-encoding" in names:
            if b"content-length" in names:
                _refuse("Content-Length and Transfer-Encoding are not sent together")
            if request.http_version == b"1.0":
                _refuse("HTTP/1.0 has no Transfer-Encoding")
        if not request.target.lower().startswith((b"http://", b"https://")):
            return request
        try:  # as a proxy is asked: the host is in the target, and a header does not count
            place = urlsplit(request.target)
        except ValueError:
            _refuse("the target is no address")
        path = (place.path or b"/") + (b"?" + place.query if place.query else b"")
        headers = [pair for pair in request.headers if pair[0] != b"host"]
        return h11.Request(
            method=request.method,
            target=path,
            headers=[(b"host", place.netloc), *headers],
            http_version=request.http_version,
        )

    def _count(self, data: h11.Data) -> None:
        """A body of tiny chunks takes far longer to read than to send."""
        self._chunks += data.chunk_start
        self._bytes += len(data.data)
        if self._chunks > _FEW_CHUNKS and self._bytes < self._chunks * _LEAST_CHUNK:
            _refuse(f"the body's chunks are too small: {self._chunks} hold {self._bytes} bytes")


def _measure(given: bytes) -> None:
    """Refuse a head that is too large before it is taken apart, which takes far longer."""
    blank = _BLANK.search(given, 0, MAX_HEAD)
    size = blank.end() if blank else len(given)
    if size > MAX_HEAD or given.count(b"\n", 0, size) > MAX_HEADERS + 2:  # its first and last line
        _refuse("too large", 431)


def _refuse(message: str, status: int = 400) -> NoReturn:
    raise h11.RemoteProtocolError(message, error_status_hint=status)
