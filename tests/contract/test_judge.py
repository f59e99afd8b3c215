from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.document import kept_document
from tests.contract.judge import breaks

Change = Callable[[dict[str, Any]], object]
GONE = object()

SMALL: dict[str, Any] = {
    "paths": {
        "/things": {
            "get": {
                "operationId": "list_things",
                "security": [{"bearer": []}],
                "parameters": [
                    {"in": "query", "name": "kind", "schema": {"type": "string", "enum": ["a", "b"]}},
                    {"in": "query", "name": "limit", "schema": {"type": "integer", "maximum": 100, "default": 50}},
                    {"in": "query", "name": "cursor", "schema": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
                ],
                "responses": {
                    "200": {
                        "headers": {"Link": {"schema": {"type": "string"}}},
                        "content": {
                            "application/json": {
                                "schema": {"type": "array", "items": {"$ref": "#/components/schemas/Thing"}}
                            }
                        },
                    },
                    "404": {"content": {"application/problem+json": {"schema": {"type": "object"}}}},
                },
            },
            "post": {
                "operationId": "create_thing",
                "requestBody": {
                    "required": False,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}},
                },
                "responses": {"201": {"content": {"application/json": {"schema": {}}}}},
            },
        }
    },
    "components": {
        "schemas": {
            "Thing": {
                "type": "object",
                "title": "Thing",
                "required": ["id", "state"],
                "properties": {
                    "id": {"type": "string", "format": "uuid"},
                    "state": {"type": "string", "enum": ["on", "off"]},
                    "size": {"type": "number"},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
                    "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Thing"}},
                },
            },
            "Order": {
                "type": "object",
                "title": "Order",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "maxLength": 10},
                    "size": {"type": ["number", "null"]},
                    "lines": {"type": "array", "items": {"type": "string"}},
                },
            },
        }
    },
}

GET = ("paths", "/things", "get")
POST = ("paths", "/things", "post")
KIND, LIMIT, CURSOR = ((*GET, "parameters", n) for n in range(3))
BODY = (*POST, "requestBody")
THING = ("components", "schemas", "Thing")
ORDER = ("components", "schemas", "Order")


def changed(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The document with something else at that place, or nothing (`GONE`)."""
    document = copy.deepcopy(SMALL)
    at: Any = document
    for part in place[:-1]:
        at = at[part]
    if value is GONE:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return document


ANSWER = "GET /things answer 200[]"
BREAKS = [
    (("paths", "/things"), GONE, ["GET /things: removed", "POST /things: removed"]),
    (POST, GONE, ["POST /things: removed"]),
    ((*GET, "operationId"), "get_things", ["GET /things: operationId list_things became get_things; generated"]),
    ((*GET, "security"), [{"bearer": [], "second": []}], ["GET /things: bearer is not enough any more"]),
    ((*POST, "security"), [{"bearer": []}], ["POST /things: no credentials is not enough any more"]),
    (KIND, GONE, ["GET /things query kind: removed"]),
    ((*KIND, "name"), "type", ["GET /things query kind: removed"]),
    ((*KIND, "required"), True, ["GET /things query kind: now required"]),
    ((*KIND, "schema", "enum"), ["a", "c"], ["GET /things query kind: value 'b' removed"]),
    ((*LIMIT, "schema", "enum"), [10, 20], ["GET /things query limit: only certain values are taken now"]),
    ((*LIMIT, "schema", "maximum"), 50, ["GET /things query limit: maximum 100 became 50"]),
    ((*LIMIT, "schema", "minimum"), 1, ["GET /things query limit: minimum None became 1"]),
    ((*LIMIT, "schema", "default"), 20, ["GET /things query limit: default 50 became 20"]),
    ((*LIMIT, "schema", "type"), "string", ["GET /things query limit: integer is not taken any more"]),
    ((*CURSOR, "schema"), {"type": "string"}, ["GET /things query cursor: null is not taken any more"]),
    ((*CURSOR, "explode"), False, ["GET /things query cursor: explode changed"]),
    ((*BODY, "required"), True, ["POST /things body: now required"]),
    (BODY, GONE, ["POST /things body: removed"]),
    ((*GET, "requestBody"), {"required": True, "content": {}}, ["GET /things body: new and required"]),
    ((*BODY, "content"), {"text/csv": {}}, ["POST /things body: application/json removed"]),
    ((*ORDER, "required"), ["name", "lines"], ["POST /things body.lines: now required"]),
    ((*ORDER, "properties", "lines"), GONE, ["POST /things body.lines: removed"]),
    ((*ORDER, "properties", "name", "maxLength"), 9, ["POST /things body.name: maxLength 10 became 9"]),
    ((*ORDER, "properties", "name", "pattern"), "^a", ["POST /things body.name: pattern None became '^a'"]),
    ((*ORDER, "properties", "size", "type"), ["integer", "null"], ["POST /things body.size: number is not taken"]),
    ((*ORDER, "properties", "lines", "items"), {"type": "integer"}, ["POST /things body.lines[]: string is not"]),
    ((*ORDER, "additionalProperties"), False, ["POST /things body: other fields are refused now"]),
    ((*GET, "responses", "404"), GONE, ["GET /things answer 404: removed"]),
    ((*GET, "responses", "200", "headers", "Link"), GONE, ["GET /things answer 200 header Link: removed"]),
    ((*GET, "responses", "200", "content"), {"text/csv": {}}, ["GET /things answer 200: application/json removed"]),
    ((*THING, "properties", "id"), GONE, [f"{ANSWER}.id: removed"]),
    ((*THING, "properties", "id", "format"), GONE, [f"{ANSWER}.id: format 'uuid' became None"]),
    ((*THING, "required"), ["id"], [f"{ANSWER}.state: not always there any more"]),
    ((*THING, "properties", "state", "enum"), ["on", "paused"], [f"{ANSWER}.state: value 'off' removed"]),
    ((*THING, "properties", "state", "enum"), GONE, [f"{ANSWER}.state: values are no longer a closed list"]),
    ((*THING, "properties", "size", "type"), "string", [f"{ANSWER}.size: string can come now"]),
    ((*THING, "properties", "size", "type"), ["number", "null"], [f"{ANSWER}.size: null can come now"]),
    ((*THING, "properties", "size"), {}, [f"{ANSWER}.size: any value can come now"]),
    ((*THING, "properties", "counts", "additionalProperties"), {"type": "string"}, [f"{ANSWER}.counts.*: string can"]),
    ((*THING, "properties", "parts", "items"), {"type": "string"}, [f"{ANSWER}.parts[]: string can come now"]),
]  # fmt: skip
KEEPS = [
    (("paths", "/more"), {"get": {"responses": {}}}),
    ((*GET, "parameters"), [*SMALL["paths"]["/things"]["get"]["parameters"], {"in": "query", "name": "new"}]),
    ((*KIND, "schema", "enum"), ["a", "b", "c"]),
    ((*KIND, "schema"), {"type": "string"}),
    ((*LIMIT, "schema", "maximum"), 1000),
    ((*LIMIT, "schema", "type"), "number"),
    ((*POST, "security"), [{"bearer": []}, {}]),
    ((*ORDER, "required"), []),
    ((*ORDER, "properties", "extra"), {"type": "string"}),
    ((*ORDER, "properties", "name", "maxLength"), GONE),
    ((*ORDER, "properties", "size", "type"), ["number", "null", "string"]),
    ((*BODY, "content", "text/csv"), {}),
    ((*GET, "responses", "503"), {}),
    ((*THING, "properties", "extra"), {"type": "string"}),
    ((*THING, "required"), ["id", "state", "size"]),
    ((*THING, "properties", "state", "enum"), ["on", "off", "broken"]),
    ((*THING, "properties", "size", "type"), "integer"),
    ((*THING, "properties", "note"), {"type": "string"}),
    ((*THING, "description"), "told otherwise"),
]


@pytest.mark.parametrize(("place", "value", "expected"), BREAKS)
def test_what_breaks_a_client_is_named(place: tuple[Any, ...], value: Any, expected: list[str]) -> None:
    found = breaks(SMALL, changed(place, value))

    assert len(found) == len(expected), found
    assert all(told.startswith(start) for told, start in zip(found, expected, strict=True)), found


@pytest.mark.parametrize(("place", "value"), KEEPS)
def test_what_adds_or_allows_more_breaks_nobody(place: tuple[Any, ...], value: Any) -> None:
    assert breaks(SMALL, changed(place, value)) == []


def test_a_new_required_parameter_breaks_every_client() -> None:
    new = changed((*POST, "parameters"), [{"in": "header", "name": "x-key", "required": True, "schema": {}}])

    assert breaks(SMALL, new) == ["POST /things header x-key: new and required"]


def without_repeated_errors(document: dict[str, Any]) -> dict[str, Any]:
    """Every operation tells the same errors: looked at once, they cost a tenth."""
    first, *others = [operation for path in document["paths"].values() for operation in path.values()]
    assert first["responses"]
    for operation in others:
        if len(operation["responses"]) > 1:
            operation["responses"] = {status: a for status, a in operation["responses"].items() if status[0] == "2"}
    return document


def test_any_field_taken_out_of_the_real_document_is_found() -> None:
    kept = without_repeated_errors(kept_document())
    schemas = kept["components"]["schemas"]

    for name, schema in schemas.items():
        field = next(iter(schema.get("properties", {})), None)
        if field is not None:
            fewer = {key: value for key, value in schema["properties"].items() if key != field}
            new = kept | {"components": {"schemas": schemas | {name: schema | {"properties": fewer}}}}
            assert any(told.endswith(f".{field}: removed") for told in breaks(kept, new)), (name, field)
