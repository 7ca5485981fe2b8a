"""A server's life: bind, load, serve, drain."""

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
from types import FrameType

import jax
import uvicorn

from serve import cache_length, loading
from serve.api import app
from serve.engine import multihost
from serve.http.keys import Keys
from serve.http.protocol import MAX_HEAD, limited
from serve.service import Service
from serve.settings import ServeConfig

log = logging.getLogger("serve")


def serve(settings: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C; raises OSError where the port is taken,
    ValueError where memory cannot hold what is asked for."""
    logging.basicConfig(
        stream=sys.stderr,
        force=True,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("serve").setLevel(logging.INFO)
    keys = Keys.read(settings.api_keys)
    multihost.join(settings)
    if settings.coordinator is not None and jax.process_index() > 0:
        multihost.follow(loading.runner(loading.parameters(settings), settings), settings)
        return
    cache_length.check(settings)
    listener = bind(settings)
    service = Service(settings)
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.tls_certificate else "http"
    log.info("listening on %s://%s:%d", scheme, host, port)
    threading.Thread(target=_load, args=(service,), daemon=True).start()
    signal.signal(signal.SIGTERM, _nothing)  # uvicorn raises it again when all is done
    Server(service, keys).run(sockets=[listener])


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


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
        raise OSError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; "
            "choose another --port, or end the server that has it"
        ) from None
    return listener


def _load(service: Service) -> None:
    try:
        settings = service.settings
        params = loading.parameters(settings)
        runner = loading.runner(params, settings)
        device = runner if settings.coordinator is None else multihost.Leader(runner, settings)
        loading.start(service, params, device)
        gc.collect()
        gc.freeze()  # what lives as long as the process is looked through no more: 0.2 s each time
    except Exception as error:
        service.failure = str(error) or type(error).__name__
        log.exception("the model cannot be loaded")
        signal.raise_signal(signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn, which on SIGTERM takes nothing new and lets answers under way come to their end."""

    def __init__(self, service: Service, keys: Keys):
        settings = service.settings
        self._service = service
        certificate, key = settings.tls_certificate, settings.tls_key
        config = uvicorn.Config(
            app.build(service, keys),
            http=limited(settings.header_seconds),
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
            ssl_certfile=certificate and str(certificate),
            ssl_keyfile=key and str(key),
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.draining = True
        super().handle_exit(sig, frame)

    async def main_loop(self) -> None:
        watching = asyncio.create_task(self._service.lag.watch())
        await super().main_loop()
        watching.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._service.lanes.close()
        if self._service.model is not None:
            self._service.model.engine.stop()
            self._service.model.grammars.close()
