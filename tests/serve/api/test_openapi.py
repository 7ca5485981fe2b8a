"""schemathesis sends what the description allows and what it does not; nothing breaks."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serve.api.openapi import document
from tests.serve.conftest import Running, Serve


@pytest.fixture(scope="module")
def api(scripted: Serve) -> Iterator[Running]:
    with scripted() as running:
        yield running


schema = schemathesis.openapi.from_dict(json.loads(document()))


@schema.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_the_description_holds(api: Running, case: Any) -> None:
    # what is well described may still be refused: a description cannot say what goes with what
    case.call_and_validate(base_url=api.url, excluded_checks=[positive_data_acceptance])


def test_every_route_is_described(api: Running) -> None:
    described = set(httpx.get(f"{api.url}/openapi.json").json()["paths"])
    app: Any = api.server.config.app
    routes = {route.path for route in app.routes}
    assert described <= routes
    pages = {path for path in routes - described if httpx.get(api.url + path).status_code == 200}
    assert all(path == "/" or "." in path for path in pages)
