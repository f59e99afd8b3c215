"""`GET /v1/exports/events`, on both databases and over real connections."""

import csv
import gzip
import io
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from structlog.testing import capture_logs

from app.db import Database
from app.http import ApiKeys, install_problem_handlers
from app.models import Event
from app.query.exporting import COLUMNS, MOST_ROWS, PAGE_BYTES, Export, ExportFilters, next_rows, safe_cell
from app.query.exports import FINISHED, MAX_EXPORTS, Exports, accepts_gzip, build_router
from app.simulator.server import LocalServer
from tests.factories import NOON, event_values, insert, make_event
from tests.query.test_events import as_text, asked_for, some_events

KEY = {"authorization": "Bearer read"}


def lines(body: bytes) -> list[Any]:
    assert body == b"" or body.endswith(b"\n")
    return [json.loads(line) for line in body.splitlines()]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_an_export_tells_what_the_list_tells_and_keeps_every_digit(client, database):
    raw = '{"event":"open","time":1777802400,\r\n "MessageID":19421777835146490,"z":1.10,"u":"\\ud800\\u0000é\\n"}'
    make_event(database, raw=raw)
    insert(database, Event, [event_values() for _ in range(MOST_ROWS + 300)])

    response = client.get("/v1/exports/events")

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    assert re.fullmatch(
        r'attachment; filename="jethook-events-\d{8}T\d{6}Z\.ndjson"', response.headers["content-disposition"]
    )
    listed = client.get("/v1/events?order=asc&include=raw&limit=1000").json()["data"]
    assert lines(response.content) == listed
    assert '"MessageID":19421777835146490,"z":1.10,"u":"\\ud800\\u0000é\\n"}' in response.text


@pytest.fixture
def stored(database: Database) -> list[dict[str, Any]]:
    events = some_events()
    insert(database, Event, events)
    return events


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=asked_for)
def test_filters_mean_what_they_mean_in_the_list(client, stored, asked):
    params = {name: [as_text(value) for value in values] for name, values in asked.items()}

    listed = client.get("/v1/events", params={**params, "limit": 1000, "include": "raw"}).json()["data"]

    assert lines(client.get("/v1/exports/events", params={**params, "order": "desc"}).content) == listed
    assert lines(client.get("/v1/exports/events", params=params).content) == listed[::-1]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_what_arrives_meanwhile_makes_it_neither_miss_nor_repeat(database, order):
    insert(database, Event, there := [event_values() for _ in range(900)])
    export, body = Export(ExportFilters(order=order)), b""

    while not export.done:
        with database.reading() as connection:
            body += export.next_part(connection)
        insert(database, Event, [event_values(occurred_at=NOON + timedelta(seconds=n * 97)) for n in range(9)])

    told = [line["id"] for line in lines(body)]
    assert len(told) == len(set(told)) == export.count
    assert {event["id"] for event in there} <= set(told)
    assert told == sorted(told, reverse=order == "desc")


def test_operator_events_are_exported_only_when_asked_for(client, database):
    mail = make_event(database)
    ours = make_event(database, webhook="jethook", type="jethook.sink.opened", outcome="unknown", email=None)

    told = [lines(client.get(f"/v1/exports/events{query}").content) for query in ("", "?webhook=jethook")]

    assert [[line["id"] for line in part] for part in told] == [[mail["id"]], [ours["id"]]]


def test_nothing_is_a_file_as_well(client):
    assert client.get("/v1/exports/events").content == b""
    assert client.get("/v1/exports/events?format=csv").text == ",".join(COLUMNS) + "\r\n"


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_has_one_column_a_field_and_json_in_the_last_two(client, database):
    raw = '{"event":"bounce","time":1,\n"Payload":"{\\"a\\": 1}","comment":"550 \\"no\\", gone","n":1.10}'
    make_event(database, raw=raw, custom_id='o,"1"\r\n=2', permanent=True, reason="=HYPERLINK(1)", list_id=None)

    response = client.get("/v1/exports/events?format=csv")
    (event,) = client.get("/v1/events").json()["data"]
    (row,) = rows(response.text)

    assert response.headers["content-type"].startswith("text/csv; charset=utf-8")
    assert response.headers["content-disposition"].endswith('.csv"')
    assert response.text.split("\r\n")[0] == ",".join(COLUMNS)
    assert list(row) == list(COLUMNS)
    assert set(row) == {*event, "raw"}
    details, raw_cell = row.pop("details"), row.pop("raw")
    assert row == {name: {None: "", True: "true", False: "false"}.get(event[name], event[name]) for name in row}
    assert (details, raw_cell) == ('{"comment":"550 \\"no\\", gone","n":1.10}', raw.replace("\n", " "))
    assert (row["custom_id"], row["reason"]) == ('o,"1"\r\n=2', "=HYPERLINK(1)")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_csv_for_a_spreadsheet_holds_no_formula(client, database, start):
    make_event(database, reason=f"{start}1+1", custom_id="o-1")

    (row,) = rows(client.get("/v1/exports/events?format=csv&csv_safe=true").text)

    assert (row["reason"], row["custom_id"]) == (f"'{start}1+1", "o-1")


def test_safe_cells_of_other_kinds():
    assert [safe_cell(value) for value in (None, True, False, "", "a=1")] == ["", "true", "false", "", "a=1"]


# --- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_gzip_on_the_way_and_as_a_file_hold_the_same(client, database, form):
    insert(database, Event, [event_values() for _ in range(700)])
    path = f"/v1/exports/events?format={form}"

    plain = client.get(path, headers={"accept-encoding": "identity"})
    on_the_way = client.get(path, headers={"accept-encoding": "br, gzip;q=0.5"})
    file = client.get(f"{path}&gzip=true", headers={"accept-encoding": "gzip"})

    assert "content-encoding" not in plain.headers
    assert on_the_way.headers["content-encoding"] == "gzip"
    assert on_the_way.content == plain.content  # the client has unpacked it
    assert on_the_way.headers["content-type"] == plain.headers["content-type"]
    assert "content-encoding" not in file.headers
    assert file.headers["content-type"] == "application/gzip"
    assert file.headers["content-disposition"].endswith(f'.{form}.gz"')
    assert gzip.decompress(file.content) == plain.content
    assert len(file.content) < len(plain.content) / 3


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("gzip", True), ("GZip", True), ("x-gzip", True), ("*", True), ("deflate, gzip;q=0.1", True),
        ("", False), ("br", False), ("gzip;q=0", False), ("gzip; q=0.000", False), ("*;q=0", False),
        ("gzip;q=0, *", False), ("gzippy", False),
    ],
)  # fmt: skip
def test_who_asks_for_gzip(header, expected):
    assert accepts_gzip(header) is expected


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("format=xml", "format"),
        ("order=newest", "order"),
        ("limit=1", "limit"),
        ("cursor=x", "cursor"),
        ("include=raw", "include"),
        ("emial=a@b", "emial"),
        ("outcome=exploded", "outcome"),
        ("after=yesterday", "after"),
        ("gzip=perhaps", "gzip"),
        ("csv_safe=", "csv_safe"),
    ],
)
def test_what_does_not_fit_is_a_422(refusing, query, pointer):
    response = refusing.get(f"/v1/exports/events?{query}")

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")
    assert {error["pointer"] for error in response.json()["errors"]} == {pointer}


def test_a_key_that_may_only_read_may_export(client):
    assert client.get("/v1/exports/events", headers=KEY).status_code == 200


# --- bounds, over real connections -----------------------------------------------------------------------------------


class Failing:
    """A database that answers so often and is then gone."""

    def __init__(self, database: Database, answers: int, error: Exception) -> None:
        self._database, self._answers, self._error = database, answers, error

    def reading(self) -> Any:
        self._answers -= 1
        if self._answers < 0:
            raise self._error
        return self._database.reading()


Serve = Callable[[Exports], LocalServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    opened: list[tuple[LocalServer, Exports]] = []

    def start(exports: Exports) -> LocalServer:
        app = FastAPI()
        app.include_router(build_router(exports, ApiKeys(["full"], ["read"])))
        install_problem_handlers(app)
        server = LocalServer(app)
        server.start()
        opened.append((server, exports))
        return server

    yield start
    for server, exports in opened:
        server.stop()
        exports.close()


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def large_events(count: int) -> list[dict[str, Any]]:
    """Events of 50 kB."""
    found = [event_values() for _ in range(count)]
    return [event | {"raw": event["raw"][:-1] + ', "x": "' + "x" * 50_000 + '"}'} for event in found]


@pytest.mark.parametrize(
    ("error", "result"), [(TimeoutError(), "database_unavailable"), (RuntimeError("a bug"), "failed")]
)
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_export_that_breaks_off_does_not_look_whole(database, serve, error, result, encoding):
    insert(database, Event, [event_values() for _ in range(1500)])
    exports = Exports(Failing(database, 2, error))
    server = serve(exports)

    with capture_logs() as logs, pytest.raises(httpx2.RemoteProtocolError, match="incomplete"):
        httpx2.get(f"{server.url}/v1/exports/events", headers=KEY | {"accept-encoding": encoding})

    until(lambda: exports.under_way == 0)
    (line,) = [line for line in logs if line["event"] == FINISHED]
    assert (line["result"], line["events"]) == (result, 250)


def test_a_database_that_is_gone_before_the_first_page_is_a_503(database, serve):
    exports = Exports(Failing(database, 0, TimeoutError()))

    response = httpx2.get(f"{serve(exports).url}/v1/exports/events", headers=KEY)

    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert exports.under_way == 0


def test_a_service_that_stops_cuts_exports_off(database, serve):
    insert(database, Event, [event_values() for _ in range(1500)])
    answers = iter([False, False])
    exports = Exports(database, stopping=lambda: next(answers, True))
    server = serve(exports)

    with pytest.raises(httpx2.RemoteProtocolError, match="incomplete"):
        httpx2.get(f"{server.url}/v1/exports/events", headers=KEY)

    response = httpx2.get(f"{server.url}/v1/exports/events", headers=KEY)
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert exports.under_way == 0


def test_beyond_so_many_exports_is_a_503_and_an_end_makes_room(database, serve):
    make_event(database)
    exports = Exports(database)
    url = f"{serve(exports).url}/v1/exports/events"
    for _ in range(MAX_EXPORTS):
        exports.begin()

    refused = httpx2.get(url, headers=KEY)
    exports.end()
    found = []
    for _ in range(3):
        until(lambda: exports.under_way == MAX_EXPORTS - 1)  # the answer is whole a moment before its export has ended
        found.append(httpx2.get(url, headers=KEY).status_code)

    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert refused.headers["retry-after"] == "30"
    assert found == [200, 200, 200]
    until(lambda: exports.under_way == MAX_EXPORTS - 1)


@pytest.mark.parametrize(("hangs_up", "result"), [(True, "hung_up"), (False, "stalled")])
def test_a_client_that_takes_no_more_ends_its_export(database, serve, hangs_up, result):
    insert(database, Event, large_events(600))  # more than all buffers between us hold
    exports = Exports(database, stall_seconds=0.5)
    server = serve(exports)

    with capture_logs() as logs, socket.create_connection((server.host, server.port)) as connection:
        connection.sendall(b"GET /v1/exports/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer read\r\n\r\n")
        assert connection.recv(4) == b"HTTP"
        assert exports.under_way == 1
        if hangs_up:
            connection.close()
        until(lambda: exports.under_way == 0)

    (line,) = [line for line in logs if line["event"] == FINISHED]
    assert line["result"] == result
    assert line["events"] < 600


@pytest.mark.parametrize(
    ("rows_before", "size", "expected"),
    [
        pytest.param(50, 60_000, 200, id="grows while events are small"),
        pytest.param(MOST_ROWS, 100, MOST_ROWS, id="to a bound"),
        pytest.param(100, 4 * PAGE_BYTES, 25, id="shrinks with large ones"),
        pytest.param(1, 9 * PAGE_BYTES, 1, id="never to nothing"),
    ],
)
def test_pages_fit_what_is_in_them(rows_before, size, expected):
    assert next_rows(rows_before, size) == expected
