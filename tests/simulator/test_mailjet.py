import threading

import httpx2
import pytest

from app.simulator.callbacks import NotFoundError
from app.simulator.mailjet import StandInMailjet
from app.simulator.server import LocalServer

PATH = "/v3/REST/eventcallbackurl"
KEYS = {"key-one": "secret-one", "key-two": "secret-two"}
URL = "https://jethook:pw@hooks.example.com/webhooks/orders"
TYPES = ("sent", "open", "click", "bounce", "spam", "blocked", "unsub")


@pytest.fixture
def mailjet():
    return StandInMailjet(KEYS)


@pytest.fixture
def server(mailjet):
    with LocalServer(mailjet) as server:
        yield server


@pytest.fixture
def client(server):
    with httpx2.Client(base_url=server.url, auth=("key-one", "secret-one")) as client:
        yield client


@pytest.mark.parametrize(
    "auth",
    [
        pytest.param(None, id="none"),
        pytest.param(("key-one", "wrong"), id="wrong secret"),
        pytest.param(("nobody", "secret-one"), id="unknown key"),
    ],
)
def test_wrong_credentials_get_an_empty_page(server, auth):
    answer = httpx2.get(server.url + PATH, auth=auth)

    assert (answer.status_code, answer.content) == (401, b"")
    assert answer.headers["content-type"].startswith("text/html")


def test_each_key_has_its_own_callbacks(client, server, mailjet):
    mailjet.put_callback("key-two", "open", URL)

    assert client.get(PATH).json() == {"Count": 0, "Data": [], "Total": 0}
    assert httpx2.get(server.url + PATH, auth=("key-two", "secret-two")).json()["Count"] == 1


def test_a_post_fills_in_the_defaults_and_answers_with_the_envelope(client, mailjet):
    answer = client.post(PATH, json={"Url": URL, "EventType": "bounce"})

    assert answer.status_code == 201
    envelope = answer.json()
    assert (envelope["Count"], envelope["Total"]) == (1, 1)
    (callback,) = mailjet.callbacks("key-one")
    assert envelope["Data"] == [
        {
            "ID": callback.id,
            "APIKeyID": callback.api_key_id,
            "EventType": "bounce",
            "IsBackup": False,
            "Status": "alive",
            "Url": URL,
            "Version": 1,
        }
    ]


def test_a_post_may_set_every_writable_property(client, mailjet):
    client.post(
        PATH,
        json={"Url": URL, "EventType": "sent", "IsBackup": True, "Status": "dead", "Version": 2, "Region": "eu-x"},
    )

    (callback,) = mailjet.callbacks()
    assert (callback.slot, callback.status, callback.version) == (("sent", True), "dead", 2)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"EventType": "open"}', id="no Url"),
        pytest.param(b'{"Url": ""}', id="empty Url"),
        pytest.param(b'{"Url": "nonsense"}', id="no http"),
        pytest.param(b'{"Url": "http://a.example", "EventType": "typofix"}', id="retired type"),
        pytest.param(b'{"Url": "http://a.example", "EventType": 7}', id="type as a number"),
        pytest.param(b'{"Url": "http://a.example", "Version": 3}', id="unknown version"),
        pytest.param(b'{"Url": "http://a.example", "Version": true}', id="version of another kind"),
        pytest.param(b'{"Url": "http://a.example", "Status": "asleep"}', id="unknown status"),
        pytest.param(b'{"Url": "http://a.example", "IsBackup": "false"}', id="text for a boolean"),
        pytest.param(b'{"Url": "http://a.example", "Colour": "red"}', id="unknown property"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"{", id="no JSON"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_bad_post_is_a_400_in_the_error_envelope(client, mailjet, body):
    answer = client.post(PATH, content=body)

    assert answer.status_code == 400
    assert answer.json().keys() == {"ErrorInfo", "ErrorMessage", "StatusCode"}
    assert mailjet.callbacks() == []


@pytest.mark.parametrize(
    ("event_type", "backup", "value"),
    [("sent", False, "7|false"), ("open", True, "6|true"), ("click", False, "1|false")],
)
def test_a_taken_slot_is_refused_with_mj18(client, mailjet, event_type, backup, value):
    mailjet.put_callback("key-one", event_type, URL, is_backup=backup)

    answer = client.post(PATH, json={"Url": URL, "EventType": event_type, "IsBackup": backup})

    assert answer.status_code == 400
    assert answer.json() == {
        "ErrorInfo": "",
        "ErrorMessage": f'MJ18 A EventCallbackURL resource with value "{value}" for EventType|Backup already exists.',
        "StatusCode": 400,
    }


def test_a_list_without_limit_stops_at_ten(client, mailjet):
    for event_type in TYPES:
        for backup in (False, True):
            mailjet.put_callback("key-one", event_type, URL, is_backup=backup)

    def count(**query):
        return len(client.get(PATH, params=query).json()["Data"])

    assert (count(), count(Limit=1000), count(Limit=0), count(Limit=5000), count(Limit=3)) == (10, 14, 14, 14, 3)
    assert count(Limit=1000, Offset=12) == 2
    assert count(Limit=1000, Colour="red") == 14


def test_total_counts_the_page_unless_asked_otherwise(client, mailjet):
    for event_type in TYPES:
        mailjet.put_callback("key-one", event_type, URL)

    assert client.get(PATH, params={"Limit": 2}).json()["Total"] == 2
    assert client.get(PATH, params={"Limit": 2, "countrecords": 1}).json()["Total"] == 7
    assert client.get(PATH, params={"countOnly": 1}).json() == {"Count": 7, "Data": [], "Total": 7}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("EventType=open", {("open", False), ("open", True)}),
        ("EventType=6", {("open", False), ("open", True)}),
        ("EventType=open&Backup=true", {("open", True)}),
        ("Backup=false", {("open", False), ("sent", False)}),
        ("Status=dead", {("sent", False)}),
        ("Version=2", {("open", True)}),
        ("Status=dead&Status=alive", {("sent", False)}),
        ("Sort=ID", {("open", False), ("open", True), ("sent", False)}),
    ],
)
def test_filters_combine_with_and_and_the_first_of_a_name_counts(client, mailjet, query, expected):
    mailjet.put_callback("key-one", "open", URL)
    mailjet.put_callback("key-one", "open", URL, is_backup=True, version=2)
    mailjet.put_callback("key-one", "sent", URL, status="dead")

    rows = client.get(f"{PATH}?{query}").json()["Data"]

    assert {(row["EventType"], row["IsBackup"]) for row in rows} == expected


@pytest.mark.parametrize("query", ["Sort=ID+DESC", "Sort=Url", "Limit=many", "Offset=-1"])
def test_a_wrong_sort_or_number_is_a_400(client, query):
    assert client.get(f"{PATH}?{query}").status_code == 400


def test_one_callback_is_read_by_id_or_by_its_key(client, mailjet):
    callback = mailjet.put_callback("key-one", "open", URL)

    for key in (callback.id, "open%7Cfalse"):
        assert client.get(f"{PATH}/{key}").json()["Data"] == [callback.to_json()]
    for key in (callback.id + 1, "open%7Ctrue", "open", "sent%7Cfalse"):
        answer = client.get(f"{PATH}/{key}")
        assert (answer.status_code, answer.json()["ErrorMessage"]) == (404, "Object not found")


def test_a_put_changes_only_what_it_names(client, mailjet):
    callback = mailjet.put_callback("key-one", "open", URL, version=1)

    answer = client.put(f"{PATH}/open%7Cfalse", json={"Version": 2})

    assert answer.status_code == 200
    assert answer.json()["Data"] == [{**callback.to_json(), "Version": 2}]
    assert mailjet.find_callback("key-one", "open").version == 2


def test_a_put_that_changes_nothing_is_an_empty_304(client, mailjet):
    callback = mailjet.put_callback("key-one", "open", URL)

    answer = client.put(f"{PATH}/{callback.id}", json={"Url": URL, "Version": 1})

    assert (answer.status_code, answer.content) == (304, b"")


@pytest.mark.parametrize("name", ["ID", "APIKeyID"])
def test_sending_the_whole_object_back_is_mj19(client, mailjet, name):
    callback = mailjet.put_callback("key-one", "open", URL)

    answer = client.put(f"{PATH}/{callback.id}", json={name: callback.id, "Version": 2})

    assert answer.status_code == 401
    assert answer.json()["ErrorMessage"] == f'Internal error: MJ19 Setting a value for property "{name}" is not allowed'
    assert mailjet.callbacks() == [callback]


def test_a_put_into_a_taken_slot_is_mj18(client, mailjet):
    mailjet.put_callback("key-one", "open", URL)
    other = mailjet.put_callback("key-one", "sent", URL)

    answer = client.put(f"{PATH}/{other.id}", json={"EventType": "open"})

    assert answer.json()["ErrorMessage"].startswith("MJ18")


def test_a_put_to_nothing_is_a_404(client):
    assert client.put(f"{PATH}/1", content=b"{").status_code == 404


def test_only_a_new_url_revives_a_dead_callback(client, mailjet):
    mailjet.put_callback("key-one", "open", URL)
    callback = mailjet.mark_dead("key-one", "open")

    assert client.put(f"{PATH}/{callback.id}", json={"Status": "alive"}).status_code == 304
    assert client.put(f"{PATH}/{callback.id}", json={"Status": "alive", "Version": 2}).status_code == 200
    assert mailjet.find_callback(None, "open").status == "dead"
    assert client.put(f"{PATH}/{callback.id}", json={"Url": URL + "?r=1"}).status_code == 200
    assert mailjet.find_callback(None, "open").status == "alive"


def test_the_status_alone_revives_when_the_stand_in_is_told_so():
    mailjet = StandInMailjet(KEYS, status_alone_revives=True)
    callback = mailjet.put_callback("key-one", "open", URL, status="dead")
    with LocalServer(mailjet) as server:
        httpx2.put(f"{server.url}{PATH}/{callback.id}", json={"Status": "alive"}, auth=("key-one", "secret-one"))

    assert mailjet.callbacks()[0].status == "alive"


def test_delete_answers_204_once(client, mailjet):
    callback = mailjet.put_callback("key-one", "open", URL)

    answers = [client.delete(f"{PATH}/{callback.id}") for _ in range(2)]

    assert [answer.status_code for answer in answers] == [204, 404]
    assert answers[0].content == b""
    assert mailjet.callbacks() == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v3/rest/eventcallbackurl", 200),
        ("PATCH", f"{PATH}/1", 405),
        ("DELETE", PATH, 405),
        ("POST", f"{PATH}/1", 405),
        ("GET", "/v3/REST/nonsense", 500),
        ("GET", "/v3.1/REST/eventcallbackurl", 404),
        ("GET", "/", 404),
    ],
)
def test_paths_and_methods(client, method, path, status):
    assert client.request(method, path).status_code == status


def test_an_unknown_resource_is_the_error_of_the_framework_behind_it(client):
    assert client.get("/v3/REST/nonsense").json()["ErrorInfo"] == "EFPWebError"


def test_the_order_of_keys_varies(mailjet):
    rows = [mailjet.put_callback(None, event_type, URL).to_json() for event_type in TYPES]

    assert len({tuple(row) for row in rows}) > 1
    assert len({frozenset(row) for row in rows}) == 1


def test_calls_are_remembered(client, mailjet):
    client.post(f"{PATH}?a=1", json={"Url": URL})
    client.get(PATH)

    first, second = mailjet.requests
    assert (first.method, first.path, first.query, first.json) == ("POST", PATH, {"a": "1"}, {"Url": URL})
    assert (first.status, first.api_key, second.json, second.status) == (201, "key-one", None, 200)
    mailjet.clear_requests()
    assert mailjet.requests == []


def test_the_next_calls_can_be_made_to_fail(client, mailjet):
    mailjet.fail_next(2, 500)
    mailjet.fail_next(1, 429, headers={"Retry-After": "3"})
    mailjet.fail_next(1, 401)
    mailjet.fail_next(1, 502, body="<html>bad gateway</html>")
    mailjet.fail_next(1, 400, body={"ErrorMessage": "no"})

    answers = [client.get(PATH) for _ in range(7)]

    assert [answer.status_code for answer in answers] == [500, 500, 429, 401, 502, 400, 200]
    assert answers[0].json()["StatusCode"] == 500
    assert answers[2].headers["retry-after"] == "3"
    assert (answers[3].content, answers[4].text) == (b"", "<html>bad gateway</html>")
    assert answers[5].json() == {"ErrorMessage": "no"}


def test_a_fault_can_wait_for_a_method(client, mailjet):
    mailjet.fail_next(1, 500, method="POST")

    assert client.get(PATH).status_code == 200
    assert client.post(PATH, json={"Url": URL}).status_code == 500
    assert mailjet.callbacks() == []
    assert client.post(PATH, json={"Url": URL}).status_code == 201


def test_it_can_be_down_and_slow(client, mailjet):
    mailjet.set_down(True)
    assert client.get(PATH).status_code == 503
    mailjet.set_down(False)
    mailjet.set_slow(5)
    with pytest.raises(httpx2.ReadTimeout):
        client.get(PATH, timeout=0.05)
    mailjet.set_slow(0)
    assert client.get(PATH).status_code == 200


def test_somebody_else_can_be_faster(client, mailjet):
    mailjet.on_request = lambda call: call.method == "POST" and mailjet.put_callback("key-one", "open", URL)

    assert client.get(PATH).json()["Count"] == 0
    assert "MJ18" in client.post(PATH, json={"Url": URL, "EventType": "open"}).text


def test_two_clients_never_get_the_same_slot(server, mailjet):
    statuses = []

    def post():
        answer = httpx2.post(server.url + PATH, json={"Url": URL}, auth=("key-one", "secret-one"))
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(statuses) == [201] + [400] * 7
    assert len(mailjet.callbacks()) == 1


def test_state_can_be_changed_from_outside(mailjet):
    first = mailjet.put_callback("key-two", "open", URL)
    second = mailjet.put_callback("key-two", "open", URL + "/2", version=2)

    assert (first.id, second.version) == (second.id, 2)
    mailjet.remove_callback("key-two", "open")
    assert mailjet.find_callback("key-two", "open") is None
    with pytest.raises(NotFoundError):
        mailjet.mark_dead("key-two", "open")
