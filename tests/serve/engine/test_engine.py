"""The thread between the schedule and the device."""

import threading
from collections.abc import Sequence
from typing import Any

from serve.engine.engine import Engine
from serve.engine.metrics import Metrics
from serve.engine.operations import Step, Update
from tests.patience import PATIENCE
from tests.serve.fake import Client, Fake, make


class Slow(Fake):
    """A device whose steps end once somebody has the first token."""

    def __init__(self, limits: Any):
        super().__init__(limits)
        self.first, self.waits = threading.Event(), list[bool]()

    def read(self, operations: Sequence[Any], outputs: Sequence[Any]) -> Any:
        if any(isinstance(operation, Step) for operation in operations):
            self.waits.append(self.first.wait(PATIENCE))
        return outputs

    def close(self) -> None:
        """Nothing is held."""


def test_a_first_token_waits_for_no_step() -> None:
    schedule, fake, _ = make()
    device, ended = Slow(fake.limits), threading.Event()
    client = Client([1, 2, 3], 5)
    told = client.request.emit

    def emit(update: Update) -> None:
        told(update)
        device.first.set()
        if update.finish:
            ended.set()

    client.request.emit = emit
    engine = Engine(device, schedule, Metrics())
    engine.start()
    engine.submit([client.request])
    assert ended.wait(PATIENCE)
    engine.stop()
    assert device.waits
    assert all(device.waits)
    assert client.tokens == client.wanted
