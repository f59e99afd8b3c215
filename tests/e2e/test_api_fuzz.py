"""The REST as its own OpenAPI document describes it, fuzzed: no 5xx, every error problem+json, answers that fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from app.main import create_app
from app.settings import load_settings
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from app.simulator.traffic import make_events
from tests.conftest import MakeDatabase

CHECKS = (schemathesis.checks.response_schema_conformance, schemathesis.checks.status_code_conformance)
KEY = "fuzz-key"
PASSWORD = "fuzz-password"


@pytest.fixture(scope="module")
def url(make_database: MakeDatabase) -> Iterator[str]:
    """A running service with events, deliveries and quarantine in it."""
    with LocalServer(SampleSink()) as sink:
        environment = {
            "JETHOOK_DATABASE_URL": make_database("sqlite"),
            "JETHOOK_API_KEYS": KEY,
            "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": PASSWORD,
            "JETHOOK_SINKS__CRM__URL": sink.url,
        }
        with LocalServer(create_app(load_settings(environment, env_file=None))) as server:
            for body in (list(make_events(1, 80, 1_777_000_000)), "no event"):
                httpx2.post(f"{server.url}/webhooks/orders", json=body, auth=("jethook", PASSWORD))
            yield server.url


MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
BOUNDED = settings(
    max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)


@pytest.mark.timeout(120)
def test_no_request_breaks_the_service_or_gets_an_answer_the_document_does_not_tell(url: str) -> None:
    """Requests the document allows and requests it does not, for every operation."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 20
    operations = [operation for operation in operations if operation.path != "/v1/stream"]  # its answers do not end
    # Mailjet's modules ask Mailjet, again and again where it cannot be reached: they want a stand-in beside the fuzz.
    operations = [operation for operation in operations if not operation.path.startswith("/v1/connections/")]

    for operation in operations:
        for mode in MODES if operation.query or operation.path_parameters or operation.body else MODES[:1]:
            ask_many(operation, mode)


def ask_many(operation: Any, mode: GenerationMode) -> None:
    @BOUNDED
    @given(case=operation.as_strategy(mode))
    def ask(case: Any) -> None:
        receiving = case.path.startswith("/webhooks")
        case.headers = {name: value for name, value in (case.headers or {}).items() if name.lower() != "authorization"}
        if case.query:
            case.query.pop("wait_seconds", None)  # up to half a minute each; `tests/query` asks for it
        response = case.call(
            auth=("jethook", PASSWORD) if receiving else None,
            headers=None if receiving else {"authorization": f"Bearer {KEY}"},
        )
        if response.content == b"Invalid HTTP request received.":
            return  # what is no HTTP never reaches the service: the server under it answers
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert response.headers["content-type"] == ["application/problem+json"], response.text
            shown = response.json()
            assert shown["status"] == response.status_code
            assert ("errors" in shown) == (response.status_code == 422)
        case.validate_response(response, checks=list(CHECKS))

    try:
        ask()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # for a parameter that takes anything there is no wrong value
    except Exception as error:
        error.add_note(f"{operation.label}, {mode.value} data")
        raise
