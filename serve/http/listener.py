"""Accepts connections: never more than there is room for, and a probe always gets through."""

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections.abc import Callable

_LEAST = 1024  # connections, where file descriptors allow
_RESERVE = 64  # beyond the limit, for /health and /ready
_OURS = 192  # file descriptors that are not connections: files, processes, the network's own
_SEND_BUFFER = 256 * 1024  # bytes of an answer that the system holds for a client

log = logging.getLogger("serve")


def limit(wanted: int | None, requests: int) -> int:
    """Connections that may be open at once; requests: how many may wait or be answered.

    Raises the process's limit of file descriptors as far as that needs.
    """
    target = wanted or max(_LEAST, 2 * requests)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = target + _RESERVE + _OURS
    if soft < needed and soft != resource.RLIM_INFINITY:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = target if soft == resource.RLIM_INFINITY else soft - _RESERVE - _OURS
    if most < (wanted or 1):
        raise ValueError(
            f"max_connections is {target}, the limit of {soft} file descriptors leaves "
            f"{max(most, 0)}; lower it, or raise the limit (ulimit -n)"
        )
    return min(target, most)


class Seat:
    """An accepted connection. One whose request is not all there may have to make room."""

    def __init__(self, listener: "Listener", connection: socket.socket, crowded: bool):
        self._listener, self._connection = listener, connection
        self.crowded = crowded  # past the limit: only probes are answered

    def wait(self) -> None:
        """For a request, or its end."""
        if self in self._listener.seats:  # and has not left
            self._listener.waiting[self] = None

    def answer(self) -> None:
        """The request is all there."""
        self._listener.waiting.pop(self, None)

    def leave(self) -> None:
        self._listener.waiting.pop(self, None)
        self._listener.seats.discard(self)

    def hang_up(self) -> None:
        """Whoever reads from the connection finds its end."""
        self._listener.waiting.pop(self, None)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class Listener:
    """What asyncio.Server is, with a limit: who has waited longest makes room for who comes."""

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[Seat], asyncio.Protocol],
        limit: int,
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
    ):
        self._listening, self._protocol, self._limit = listening, protocol, limit
        self._tls, self._handshake_seconds = tls, handshake_seconds if tls else None
        self.seats: set[Seat] = set()
        self.waiting: dict[Seat, None] = {}  # the longest first
        self._handshakes: set[asyncio.Task[None]] = set()
        self._closed = False
        listening.setblocking(False)
        self._accepting = asyncio.ensure_future(self._accept())

    def close(self) -> None:
        self._closed = True
        for task in (self._accepting, *self._handshakes):
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(self._accepting, *self._handshakes, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                log.error("a connection cannot be accepted: %s", error)
                self._make_room()
                await asyncio.sleep(0.1)
                continue
            if len(self.seats) >= self._limit:
                self._make_room()
            if len(self.seats) >= self._limit + _RESERVE:
                connection.close()
                continue
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        task = asyncio.ensure_future(self._admit(connection))
        self._handshakes.add(task)

        def end(task: asyncio.Task[None]) -> None:
            self._handshakes.discard(task)
            if task.cancelled():  # before it began: the server ends, and nobody else has it
                connection.close()

        task.add_done_callback(end)

    async def _admit(self, connection: socket.socket) -> None:
        """Until TLS has shaken hands, where there is TLS."""
        full = len(self.seats) >= self._limit and not self.waiting
        seat = Seat(self, connection, crowded=full)
        self.seats.add(seat)
        seat.wait()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._protocol(seat),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_seconds,
            )
            if self._closed:  # nobody would tell it that the server ends
                seat.hang_up()
        except (OSError, asyncio.CancelledError):  # no TLS, or not in time
            seat.leave()
            connection.close()

    def _make_room(self) -> None:
        for seat in self.waiting:
            seat.hang_up()
            break
