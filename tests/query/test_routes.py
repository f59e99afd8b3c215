"""What all reading routes share: keys and the OpenAPI document."""

import pytest

ID = "019ded47-d100-8c4e-9a51-3f9c2b7d1e60"
CALLS = [
    ("GET", "/v1/events"),
    ("GET", f"/v1/events/{ID}"),
    ("GET", f"/v1/events/{ID}/deliveries"),
    ("GET", "/v1/messages/19421777835146490"),
    ("GET", "/v1/exports/events"),
    ("GET", "/v1/deliveries"),
    ("GET", f"/v1/deliveries/{ID}.crm"),
    ("GET", "/v1/quarantine"),
    ("GET", f"/v1/quarantine/{ID}"),
    ("DELETE", f"/v1/quarantine/{ID}"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Basic full"])
def test_nobody_gets_in_without_a_key(refusing, method, path, authorization):
    for query in ("", "?unknown=1"):
        response = refusing.request(method, path + query, headers={"authorization": authorization})

        assert (response.status_code, response.json()["code"]) == (401, "unauthorized")


def test_the_document_tells_of_every_call(refusing):
    document = refusing.get("/openapi.json").json()

    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) == len(CALLS)
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        assert operation["tags"]
        assert operation["security"] == [{"bearer": []}]
        assert all(parameter["description"] for parameter in operation["parameters"])
        assert {"401", "422", "500", "503"} <= operation["responses"].keys()
        for status, response in operation["responses"].items():
            if status == "200" and operation["tags"] == ["exports"]:
                assert list(response["content"]) == [
                    "application/x-ndjson", "text/csv", "application/vnd.apache.parquet", "application/gzip",
                ]  # fmt: skip
                continue
            wanted = [] if status == "204" else ["application/json" if status < "4" else "application/problem+json"]
            assert list(response.get("content", ())) == wanted
    assert "HTTPValidationError" not in str(document)


def test_the_document_names_every_filter_once(refusing):
    document = refusing.get("/openapi.json").json()

    names = [parameter["name"] for parameter in document["paths"]["/v1/events"]["get"]["parameters"]]

    assert sorted(names) == sorted(
        ["webhook", "type", "outcome", "email", "email_domain", "message_id", "message_guid", "campaign_id",
         "custom_campaign", "custom_id", "contact_id", "list_id", "permanent", "test", "automated", "after", "before",
         "received_after", "received_before", "order", "limit", "cursor", "include"]
    )  # fmt: skip
