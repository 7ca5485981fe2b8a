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


DESCRIPTION = json.loads(document())
# Whose fields are another route's too: that one is sent everything that each of them may not be.
ALIKE = {
    "/v1/messages/count_tokens": "/v1/messages",
    "/generate_stream": "/generate",
    "/v2/rerank": "/v1/rerank",
    "/rerank": "/v1/rerank",
}
every = schemathesis.openapi.from_dict(DESCRIPTION)
few = schemathesis.openapi.from_dict(DESCRIPTION)
few.config.phases.coverage.enabled = False

some_cases = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@every.exclude(path=list(ALIKE)).parametrize()
@some_cases
def test_the_description_holds(api: Running, case: Any) -> None:
    # what is well described may still be refused: a description cannot say what goes with what
    case.call_and_validate(base_url=api.url, excluded_checks=[positive_data_acceptance])


@few.include(path=list(ALIKE)).parametrize()
@some_cases
def test_the_description_holds_for_routes_alike(api: Running, case: Any) -> None:
    case.call_and_validate(base_url=api.url, excluded_checks=[positive_data_acceptance])


@pytest.mark.parametrize(("path", "other"), ALIKE.items())
def test_routes_alike(path: str, other: str) -> None:
    body = lambda path: DESCRIPTION["paths"][path]["post"]["requestBody"]["content"]
    name = lambda path: body(path)["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
    fields = lambda path: DESCRIPTION["components"]["schemas"][name(path)]["properties"]
    same = {name for name in fields(path) if fields(path)[name] == fields(other).get(name)}
    assert fields(path).keys() - same <= {"stream"}  # which says how the answer comes


def test_every_route_is_described(api: Running) -> None:
    described = set(httpx.get(f"{api.url}/openapi.json").json()["paths"])
    app: Any = api.server.config.app
    routes = {route.path for route in app.routes}
    assert described <= routes
    pages = {path for path in routes - described if httpx.get(api.url + path).status_code == 200}
    assert all(path == "/" or "." in path for path in pages)
