"""One model on several processes: process 0 takes requests and tells the others what to run.

The turns of the schedule go over plain sockets, as JSON, beside the devices' own network: a
collective would wait for the device, and the next turn is sent while the last one computes.
"""

import base64
import dataclasses
import hmac
import json
import secrets
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.program import rendezvous
from serve.engine import operations
from serve.engine.model_runner import ModelRunner
from serve.engine.operations import Operation, Piece, Prefill, Result, Step
from serve.settings import ServeConfig

_SECRET = 16  # bytes, which every process learns over the devices' network
_SECONDS = 60.0  # until all processes are connected


class Leader:
    """Process 0's runner: what it runs, all others run."""

    def __init__(self, runner: ModelRunner, settings: ServeConfig):
        self._runner = runner
        self.slots, self.length, self.pages = runner.slots, runner.length, runner.pages
        self.page, self.tile, self.prefix_scope = runner.page, runner.tile, runner.prefix_scope
        self.draft_tokens = runner.draft_tokens
        with socket.create_server(("", 0), family=socket.AF_INET) as listener:
            listener.settimeout(_SECONDS)
            secret = secrets.token_bytes(_SECRET)
            port = listener.getsockname()[1]
            _announced(_address(settings), port, secret)
            self._followers: list[socket.socket] = []
            while len(self._followers) < jax.process_count() - 1:
                connection, _ = listener.accept()
                connection.settimeout(_SECONDS)
                if hmac.compare_digest(_exactly(connection, _SECRET), secret):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._followers.append(connection)
                else:
                    connection.close()

    def warm(self, tell: Callable[[int, int], None] = lambda done, count: None) -> None:
        self._runner.warm(tell)

    def reset(self) -> None:
        raise RuntimeError("several processes cannot start again on their own; restart them all")

    def run(self, turn: Sequence[Operation]) -> list[Any]:
        content = json.dumps([encode(operation) for operation in turn]).encode()
        for follower in self._followers:
            follower.sendall(len(content).to_bytes(8, "big") + content)
        return self._runner.run(turn)

    def read(self, turn: Sequence[Operation], outputs: Sequence[Any]) -> list[Result | None]:
        return self._runner.read(turn, outputs)

    def close(self) -> None:
        for follower in self._followers:
            follower.close()


def follow(runner: ModelRunner, settings: ServeConfig) -> None:
    """Any other process: warm up, then run what process 0 runs, until it ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # process 0 drains first, then all end
    address, port, secret = _announced("", 0, bytes(_SECRET))
    with socket.create_connection((address, port), timeout=_SECONDS) as leader:
        leader.sendall(secret)
        runner.warm()
        leader.settimeout(None)
        while size := _exactly(leader, 8):
            content = _exactly(leader, int.from_bytes(size, "big"))
            runner.run([decode(operation) for operation in json.loads(content)])


def _announced(address: str, port: int, secret: bytes) -> tuple[str, int, bytes]:
    """What process 0 says, in every process."""
    content = np.zeros(256, np.uint8)
    text = secret + port.to_bytes(2, "big") + address.encode()
    content[: len(text)] = np.frombuffer(text, np.uint8)
    said = np.asarray(multihost_utils.broadcast_one_to_all(content)).astype(np.uint8).tobytes()
    name = said[_SECRET + 2 :].rstrip(b"\0").decode()
    return name, int.from_bytes(said[_SECRET : _SECRET + 2], "big"), said[:_SECRET]


def _address(settings: ServeConfig) -> str:
    """Where the others reach this process: they all found the coordinator there."""
    named = rendezvous.coordinator_host(settings.coordinator)
    return named or socket.gethostbyname(socket.gethostname())


def _exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes; none where the other end has closed."""
    content = b""
    while len(content) < size:
        piece = connection.recv(size - len(content))
        if not piece:
            return b""
        content += piece
    return content


# --- operations as JSON ------------------------------------------------------------------------
def encode(operation: Operation) -> dict[str, Any]:
    fields = _fields(operation)
    if isinstance(operation, Prefill):
        fields["pieces"] = [_encode_piece(piece) for piece in operation.pieces]
    if isinstance(operation, Step) and operation.masks is not None:
        fields["masks"] = [[slot, _text(mask)] for slot, mask in operation.masks.items()]
    return {"kind": type(operation).__name__, **fields}


def _encode_piece(piece: Piece) -> dict[str, Any]:
    fields = _fields(piece)
    settings = _fields(piece.settings)
    fields["settings"] = {name: _array(value) for name, value in settings.items()}
    fields["mask"] = None if piece.mask is None else _text(piece.mask)
    return fields


def _fields(made: Any) -> dict[str, Any]:
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


def decode(content: dict[str, Any]) -> Operation:
    fields = dict(content)
    kind = getattr(operations, fields.pop("kind"))
    if kind is Prefill:
        fields["pieces"] = [_decode_piece(piece) for piece in fields["pieces"]]
    if kind is Step and fields["masks"] is not None:
        fields["masks"] = {slot: base64.b64decode(mask) for slot, mask in fields["masks"]}
    made: Operation = kind(**fields)
    return made


def _decode_piece(fields: dict[str, Any]) -> Piece:
    arrays = {name: _parsed(*parts) for name, parts in fields["settings"].items()}
    mask = None if fields["mask"] is None else base64.b64decode(fields["mask"])
    return Piece(**fields | {"settings": SamplingArrays(**arrays), "mask": mask})


def _array(array: np.ndarray) -> list[Any]:
    return [str(array.dtype), array.shape, _text(array.tobytes())]


def _parsed(dtype: str, shape: list[int], content: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(content), dtype).reshape(shape)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
