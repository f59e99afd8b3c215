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
from app.simulator.account import Account
from app.simulator.mailjet import SMS_TOKEN, StandInMailjet
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from app.simulator.traffic import make_events
from tests.conftest import MakeDatabase

CHECKS = (schemathesis.checks.response_schema_conformance, schemathesis.checks.status_code_conformance)
KEY = "fuzz-key"
PASSWORD = "fuzz-password"


@pytest.fixture(scope="module")
def url(make_database: MakeDatabase) -> Iterator[str]:
    """A running service with events, deliveries and quarantine in it, and a stand-in Mailjet with a little of each."""
    mailjet = StandInMailjet()
    fill(mailjet.account)
    (key, secret), *_ = mailjet.keys.items()
    with LocalServer(SampleSink()) as sink, LocalServer(mailjet) as mailjet_server:
        environment = {
            "JETHOOK_CONNECTIONS__DEFAULT__API_KEY": key,
            "JETHOOK_CONNECTIONS__DEFAULT__SECRET_KEY": secret,
            "JETHOOK_CONNECTIONS__DEFAULT__SMS_TOKEN": SMS_TOKEN,
            "JETHOOK_CONNECTIONS__DEFAULT__BASE_URL": mailjet_server.url,
            "JETHOOK_DATABASE_URL": make_database("sqlite"),
            "JETHOOK_API_KEYS": KEY,
            "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": PASSWORD,
            "JETHOOK_SINKS__CRM__URL": sink.url,
        }
        with LocalServer(create_app(load_settings(environment, env_file=None))) as server:
            for body in (list(make_events(1, 80, 1_777_000_000)), "no event"):
                httpx2.post(f"{server.url}/webhooks/orders", json=body, auth=("jethook", PASSWORD))
            yield server.url


def fill(account: Account) -> None:
    contact, held = account.add_contact("a@example.com"), account.add_list("News")
    account.members[held["ID"], contact["ID"]] = {"IsUnsubscribed": False}
    account.add_message(ContactID=contact["ID"], ContactAlt="a@example.com", ID=19421777835146490)
    account.campaigns[7257] = {"ID": 7257, "Status": 2, "CampaignType": 1, "SendStartAt": account.time()}
    account.drafts[44098] = {"ID": 44098, "Status": 0, "SenderEmail": "a@example.com", "ContactsListID": held["ID"],
                             "DeliveredAt": ""}  # fmt: skip
    account.contents[44098] = {"Text-part": "T"}


MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
BOUNDED = settings(
    max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)


# Schemathesis sometimes asks `random` within a strategy.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.timeout(240)
def test_no_request_breaks_the_service_or_gets_an_answer_the_document_does_not_tell(url: str) -> None:
    """Requests the document allows and requests it does not, for every operation."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 20
    operations = [operation for operation in operations if operation.path != "/v1/stream"]  # its answers do not end

    for operation in operations:
        for mode in MODES if operation.query or operation.path_parameters or operation.body else MODES[:1]:
            ask_many(operation, mode)


def is_mailjets(response: Any) -> bool:
    """Told of Mailjet, and not of us."""
    return response.json().get("code", "").startswith("mailjet_")


def ask_many(operation: Any, mode: GenerationMode) -> None:
    @BOUNDED
    @given(case=operation.as_strategy(mode))
    def ask(case: Any) -> None:
        receiving = case.path.startswith("/webhooks")
        case.headers = {name: value for name, value in (case.headers or {}).items() if name.lower() != "authorization"}
        if case.path.startswith("/v1/connections/") and case.path_parameters.get("name"):
            case.path_parameters["name"] = "default"  # any other is a 404, which tells nothing of the module
        if case.query:
            case.query.pop("wait_seconds", None)  # up to half a minute each; `tests/query` asks for it
        response = case.call(
            auth=("jethook", PASSWORD) if receiving else None,
            headers=None if receiving else {"authorization": f"Bearer {KEY}"},
            timeout=60,
        )
        if response.content == b"Invalid HTTP request received.":
            return  # what is no HTTP never reaches the service: the server under it answers
        assert response.status_code < 500 or is_mailjets(response), f"{case.path} {case.body} {response.text}"
        if response.status_code >= 400:
            assert response.headers["content-type"] == ["application/problem+json"], response.text
            shown = response.json()
            assert shown["status"] == response.status_code
            assert "errors" in shown or response.status_code != 422
            assert "errors" not in shown or response.status_code in (409, 422)  # 409: what is taken already
        case.validate_response(response, checks=list(CHECKS))

    try:
        ask()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # for a parameter that takes anything there is no wrong value
    except Exception as error:
        error.add_note(f"{operation.label}, {mode.value} data")
        raise
