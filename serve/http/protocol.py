"""uvicorn's HTTP with what it lacks: every state of a connection has a bound."""

import asyncio
import contextlib
import json
from collections.abc import Callable

import h11
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from serve.http.errors import ApiError, busy
from serve.http.keys import PROBES
from serve.http.listener import Seat
from serve.http.request_reader import MAX_HEAD, RequestReader
from serve.service import Service

# What a client still sends when its answer is complete is read and dropped for a moment: if the
# connection were closed at once, a reset would overtake the answer.
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 8 * 2**20
_CROWDED_SECONDS = 2.0  # for the head of a probe, past the limit of connections
_PROBE_SECONDS = 2.0  # between two looks whether a client that has ended its side still reads
_PIECE = 16 * 1024  # bytes
_CLOSE = (b"connection", b"close")


class Deadline:
    """Something that happens unless it is called off."""

    def __init__(self, act: Callable[[], None]):
        self._act = act
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        self.clear()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._pass)

    def clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def pending(self) -> bool:
        return self._timer is not None

    def _pass(self) -> None:
        self._timer = None
        self._act()


class Protocol(H11Protocol):
    """One connection.

    It waits for a head (header_seconds; idle_seconds before its first byte, after an answer), then
    for the body (the endpoint's body_seconds), then for the answer (its request_seconds), which
    the client takes in write_seconds; what it sends that nobody reads is dropped and it is closed.
    """

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, service: Service, seat: Seat
    ):
        super().__init__(config, server_state, app_state={})
        self._service, self._seat, self._limits = service, seat, service.settings
        self.conn: RequestReader = RequestReader(h11.SERVER, MAX_HEAD)
        self._application, self.app = self.app, self._run
        self.timeout_keep_alive = self._limits.idle_seconds  # type: ignore[assignment]
        self._dropped: int | None = None  # bytes, once nothing is read any more
        self._ended = False  # the client's side; it may still read
        self._receiving = Deadline(lambda: self.transport.close())
        self._sending = Deadline(lambda: self.transport.abort())
        self._probing = Deadline(self._probe)

    # --- reading -------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1, low=0)  # whatever cannot be sent has its deadline
        seconds = self._limits.header_seconds
        self._receiving.set(min(_CROWDED_SECONDS, seconds) if self._seat.crowded else seconds)

    def data_received(self, data: bytes) -> None:
        if self._dropped is not None:
            self._dropped += len(data)
            if self._dropped > _LINGER_BYTES:
                self.transport.abort()
            return
        if self.conn.their_state is h11.IDLE and not self._receiving.pending:
            self._receiving.set(self._limits.header_seconds)
        for start in range(0, len(data), _PIECE):  # of which h11 looks at the size in between
            if self._dropped is None and not self.transport.is_closing():
                super().data_received(data[start : start + _PIECE])

    def handle_events(self) -> None:
        super().handle_events()
        if self._dropped is None and self.conn.their_state is not h11.IDLE:
            self._receiving.clear()
            if self.conn.their_state is not h11.SEND_BODY:
                self._seat.answer()

    def eof_received(self) -> bool:  # type: ignore[override]
        """True keeps the connection, for a client that has sent all and waits for its answer."""
        answering = self.cycle is not None and not self.cycle.response_complete
        whole = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        self._ended = answering and whole and self.scheme == "http"  # TLS has no half of an end
        if self._ended:
            self._probing.set(_PROBE_SECONDS)
        return self._ended

    def _probe(self) -> None:
        """An interim answer: the system of a client that has left refuses it, and we learn."""
        interim = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
        if not self.cycle.response_started and self.conn.their_http_version == b"1.1":
            self.transport.write(self.conn.send(interim) or b"")
            self._probing.set(_PROBE_SECONDS)

    # --- answering -----------------------------------------------------------------------------
    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, by whose answer the client learns that its body is not read."""

        async def answer(message: Message) -> None:
            if self.conn.their_state is h11.SEND_BODY:
                if message["type"] == "http.response.start":
                    headers = [pair for pair in message["headers"] if pair != _CLOSE]
                    message = {**message, "headers": [*headers, _CLOSE]}
                elif not message.get("more_body"):
                    await send({**message, "more_body": True})
                    await self._linger(receive)
                    message = {"type": "http.response.body"}
            await send(message)

        try:
            if self._seat.crowded and scope["path"] not in PROBES:
                refusal = busy("the server has too many connections", 503)
                await refusal.response(scope["path"])(scope, receive, answer)
            else:
                await self._application(scope, receive, answer)
        except asyncio.CancelledError:  # the server ends, and the time for answers is over
            self.cycle.disconnected = True
            self.transport.abort()

    async def _linger(self, receive: Receive) -> None:
        self._seat.wait()
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while dropped < _LINGER_BYTES:
                    message = await receive()
                    if not message.get("more_body"):
                        return
                    dropped += len(message["body"])

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self._seat.wait()
            if self._ended or self._seat.crowded:
                self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP, in the form of the API; the connection is of no more use."""
        fault = self.conn.fault
        status = fault.error_status_hint if fault else 400
        self._service.metrics.rejected.labels(str(status)).inc()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            content = json.dumps(ApiError(status, str(fault or msg)[:300]).body).encode()
            headers = [(b"content-type", b"application/json"), _CLOSE]
            headers.append((b"content-length", str(len(content)).encode()))
            response = h11.Response(status_code=status, headers=headers, reason=b"Refused")
            for event in (response, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._dropped = 0
        self._seat.wait()
        self._receiving.set(_LINGER_SECONDS)
        if self.transport.can_write_eof():
            self.transport.write_eof()

    # --- writing and ending --------------------------------------------------------------------
    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending.set(self._limits.write_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._sending.clear()

    def shutdown(self) -> None:
        """The server ends: so does the connection, once it has the answer under way."""
        if self._dropped is not None:
            self.transport.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        for deadline in (self._receiving, self._sending, self._probing):
            deadline.clear()
        self._seat.leave()
        super().connection_lost(exc)
