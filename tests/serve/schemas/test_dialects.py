"""No field of another dialect's requests is accepted and then forgotten."""

from typing import Any

import httpx
import pytest

from serve.schemas import unasked
from tests.serve.conftest import Running
from tests.serve.schemas import generate, messages, responses
from tests.serve.schemas.table import Table
from tests.serve.schemas.test_requests import (
    BESIDE,
    USED_FIELDS,
    both,
    fields_of,
    put,
    seen,
    servers,  # noqa: F401
)

TABLES = {table.file: table for table in (responses.TABLE, messages.TABLE, generate.TABLE)}


def each(part: str) -> pytest.MarkDecorator:
    """A test for every entry of a part of the tables."""
    cases = [(name, one) for name, table in TABLES.items() for one in sorted(getattr(table, part))]
    return pytest.mark.parametrize(("table", "field"), cases)


@pytest.mark.parametrize("table", TABLES)
def test_every_field_is_in_a_table(table: Any) -> None:
    known: Table = TABLES[table]
    tables = known.used.keys() | known.fixed.keys() | known.labels.keys() | known.elsewhere
    assert set().union(*map(fields_of, (table, *known.beside))) == tables


@each("used")
def test_fields_that_are_used(servers: dict[str, Running], table: str, field: str) -> None:  # noqa: F811
    known = TABLES[table]
    for before, after in both(servers, field, known.used, known.bases):
        assert after[0] in (200, 404) or field in known.refused, after
        assert before != after


@each("fixed")
def test_fields_with_one_value(servers: dict[str, Running], table: str, field: str) -> None:  # noqa: F811
    base, where, value = TABLES[table].fixed[field]
    path, body = TABLES[table].bases[base]
    answer = httpx.post(servers["modern"].url + path, json=put(body, where, value))
    assert answer.status_code == 400
    assert where.split(".")[0] in answer.text


@each("labels")
def test_fields_that_are_labels(servers: dict[str, Running], table: str, field: str) -> None:  # noqa: F811
    known = TABLES[table]
    for before, after in both(servers, field, known.labels, known.bases):
        assert before[:2] == after[:2]  # what the device is asked; the answer may show the name


SAMPLING = {name for name in USED_FIELDS if name.startswith("SamplingFields.")}


@pytest.mark.parametrize("field", sorted(SAMPLING))
@pytest.mark.parametrize("table", TABLES)
def test_tokens_are_chosen_as_in_a_chat(
    servers: dict[str, Running],  # noqa: F811
    table: Any,
    field: str,
) -> None:
    _, where, value = USED_FIELDS[field]
    known: Table = TABLES[table]
    if where not in known.renamed:
        place = {field: ("text", known.prefix + where, value)}
        for before, after in both(servers, field, place, known.bases, BESIDE):
            assert after[0] in (200, 404), after
            assert before != after


@each("unasked")
def test_what_asks_for_nothing(servers: dict[str, Running], table: str, field: str) -> None:  # noqa: F811
    path, body = TABLES[table].bases[field]
    places, labels, idle = TABLES[table].unasked[field]
    seen(servers["modern"], path, body)
    before = seen(servers["modern"], path, body)
    for where in places:
        values = [(name, value) for name in labels for value in ("x", {"a": [1]})]
        new = idle.keys() - unasked.REQUEST.keys() if where == "" else idle
        values += [(name, value) for name in new for value in (None, *idle[name])]
        for name, value in values:
            assert seen(servers["modern"], path, put(body, where + name, value)) == before, name
        for name in new:
            answer = httpx.post(
                servers["modern"].url + path, json=put(body, where + name, {"a": 7})
            )
            assert answer.status_code == 400
            assert name in answer.text
