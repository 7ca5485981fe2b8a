"""uvicorn's HTTP with what it lacks: a limit of time for a request's head."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.http.errors import ApiError

MAX_HEAD = 32 * 1024  # bytes of a request's head


def limited(seconds: float) -> type[H11Protocol]:
    """A protocol whose clients send each head within so many seconds."""

    class Protocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._arrived()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._deadline is None and self.conn.their_state is h11.IDLE:
                self._wait()  # the next request of a connection that was kept
            super().data_received(data)

        def handle_events(self) -> None:
            super().handle_events()
            if self.conn.their_state is not h11.IDLE:
                self._arrived()

        def send_400_response(self, msg: str) -> None:
            """In the form of the API."""
            fault = ApiError(400, msg)
            content = json.dumps(fault.body).encode()
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (response, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _wait(self) -> None:
            self._deadline = self.loop.call_later(seconds, self._give_up)

        def _arrived(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            self._deadline = None
            if not self.transport.is_closing():
                self.transport.close()

    return Protocol
