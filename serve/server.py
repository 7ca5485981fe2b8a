"""A server's life: bind, load, serve, drain."""

import errno
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

import jax
import uvicorn

from qwen_jax import distributed
from qwen_jax.checkpoint import Examined
from qwen_jax.program import interruption, progress
from qwen_jax.sandbox import program as walls
from serve import app, loading
from serve.engine import multihost
from serve.http.keys import Keys
from serve.http.listener import Listener, limit
from serve.http.protocol import Protocol
from serve.service import Service
from serve.settings import ServeConfig

_GRACE_SECONDS = 2.0  # after the time to drain

log = logging.getLogger("serve")


def serve(settings: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises OSError or ValueError for what is wrong with the settings, the model or the port.
    """
    logging.basicConfig(
        stream=sys.stderr,
        force=True,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("serve").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # what is no HTTP is no news
    progress.begin(log.info)
    keys = Keys.read(settings.api_keys)
    keys.expect_owners(settings.admin)
    distributed.join(settings.coordinator, settings.processes, settings.process)
    if settings.run_generated_code and (unkept := walls.missing()):
        log.warning("generated code runs without a part of its walls: %s", unkept)
    try:
        examined = loading.check(settings)
        if jax.distributed.is_initialized() and jax.process_index() > 0:
            params = loading.parameters(settings, examined)
            multihost.follow(loading.runner(params, settings), settings)
            return
        service = Service(settings)
        server = Server(service, keys)
    except (OSError, ValueError) as error:
        raise ValueError(one_line(error)) from None
    listener = bind(settings)
    # from now on, before uvicorn listens to it too, and after it, when it is raised again
    signal.signal(signal.SIGTERM, server.handle_exit)
    host, port = listener.getsockname()[:2]
    url = f"{'https' if server.tls else 'http'}://{host}:{port}"
    log.info("listening on %s", url)
    loader = threading.Thread(target=_load, args=(service, url, examined), daemon=True)
    loader.start()
    threading.Thread(target=_force_end, args=(service,), daemon=True).start()
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        if not loader.is_alive():
            raise
        interruption.end()
    if service.failure:
        raise ValueError(f"the model cannot be loaded: {service.failure}")
    # It compiles what nobody will use: Python would wait for it, or crash when it ends under it.
    if loader.is_alive():
        _leave(0)


def _force_end(service: Service) -> None:
    """End the process in time, whatever a thread still computes."""
    while not service.draining:
        time.sleep(0.1)
    time.sleep(max(1.0, service.settings.drain_seconds) + _GRACE_SECONDS)
    log.error("the process ends, though not all of its threads have")
    _leave(1 if service.failure else 0)


def _leave(code: int) -> None:
    logging.shutdown()
    os._exit(code)


def one_line(error: BaseException) -> str:
    """What went wrong, and for what nobody foresaw its kind and its place too."""
    first, *rest = (str(error).strip() or type(error).__name__).splitlines()
    said = " ".join([first.strip(), "; ".join(line.strip() for line in rest)]).strip()[:1000]
    if isinstance(error, MemoryError | OSError | ValueError | jax.errors.JaxRuntimeError):
        return said
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {said} ({Path(place.filename).name}, line {place.lineno})"


def bind(settings: ServeConfig) -> socket.socket:
    """The port, taken before the model is loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(1024)  # here and now: two that only bind would both succeed
    except OSError as error:
        listener.close()
        raise OSError(_why_not(settings, error)) from None
    return listener


def _why_not(settings: ServeConfig, error: OSError) -> str:
    """What keeps a server from listening: the name of the host, its address, or the port."""
    if isinstance(error, socket.gaierror):
        return f"--host {settings.host} is no name or address that this machine can look up"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"--host {settings.host} is no address of this machine; give one that is, 127.0.0.1 "
            "for this machine alone, or 0.0.0.0 for all of its addresses"
        )
    remedy = "choose another --port, or end the server that has it"
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "choose a --port from 1024 on"
    return f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; {remedy}"


def _load(service: Service, url: str, examined: Examined) -> None:
    """In a thread of its own; if it fails the server ends."""
    try:
        settings = service.settings
        with progress.working(f"loading {settings.model}"):
            params = loading.parameters(settings, examined)
        runner = loading.runner(params, settings)
        device = runner if jax.process_count() == 1 else multihost.Leader(runner, settings)
        loading.start(service, params, device)
        log.info("ready: the API at %s/v1, a chat page at %s/", url, url)
        loading.settle()
    except Exception as error:
        service.failure = one_line(error)
        signal.raise_signal(signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn, which on SIGTERM takes nothing new and lets answers under way come to their end."""

    servers: list[Listener]  # type: ignore[assignment]

    def __init__(self, service: Service, keys: Keys):
        settings = service.settings
        self._service = service
        self.tls = certificate(settings)
        self._most = limit(settings.max_connections, settings.slots + settings.queue)
        config = uvicorn.Config(
            app.build(service, keys),
            http=Protocol,
            loop="uvloop",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        seconds = self._service.settings.header_seconds
        made = lambda seat: Protocol(self.config, self.server_state, self._service, seat)
        self.servers = [
            Listener(listening, made, self._most, self.tls, seconds) for listening in sockets or ()
        ]
        self.started = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._service.lanes.close()
        if self._service.model is not None:
            self._service.model.engine.stop()
            self._service.model.grammars.close()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def certificate(settings: ServeConfig) -> ssl.SSLContext | None:
    """What TLS needs, where there is TLS; raises ValueError."""
    if settings.tls_certificate is None:
        return None
    for file in (settings.tls_certificate, settings.tls_key):
        assert file is not None  # as the settings say
        if b"-----BEGIN " not in _content(file):
            raise ValueError(f"{file} is not in PEM: it has no line that says BEGIN")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, lambda: "")
    except OSError as error:  # SSLError too
        raise ValueError(
            f"{settings.tls_certificate} and {settings.tls_key} are no certificate and its key "
            f"without a password, in PEM: {error}"
        ) from None
    return context
