"""The stand-in's draft campaigns with their content and actions, and sent campaigns.

Source: mailjet/api-documentation:guides/_send-campaigns.md; mailjet-apiv3-nodejs, its types.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from starlette.responses import Response

from app.simulator.account import Account
from app.simulator.callbacks import CallbackError
from app.simulator.people import properties
from app.simulator.replies import Object, envelope, equals, listing, not_found, not_offered, one_of, truth

PROGRAMMED, SENT = 1, 2
READ_ONLY = ("ID", "CreatedAt", "ModifiedAt", "DeliveredAt", "Status", "CampaignID", "Url")
PARTS = ("Html-part", "Text-part", "MJMLContent")


def draft(account: Account, method: str, path: list[str], query: Mapping[str, str], body: Any) -> Response:
    match method, path:
        case "GET", []:
            return _list(account, query)
        case "POST", []:
            return _create(account, properties(body))
        case "GET", [key]:
            return envelope([_found(account, key)])
        case "PUT", [key]:
            return _update(account, _found(account, key), properties(body))
        case _, [key, action]:
            return _act(account, method, _found(account, key), action, body)
    raise not_offered()


def _list(account: Account, query: Mapping[str, str]) -> Response:
    filters = {
        "ContactsList": equals("ContactsListID"), "EditMode": equals("EditMode"), "Status": one_of("Status"),
        "Subject": equals("Subject"), "Template": equals("TemplateID"), "IsStarred": truth("IsStarred"),
        "IsArchived": lambda row, value: (row["Status"] == -1) == (value == "true"),
        "IsDeleted": lambda row, value: (row["Status"] == -2) == (value == "true"),
        "IsCampaign": truth("CampaignID"), "IsHandled": truth("Used"), "Modified": truth("ModifiedAt"),
        "DeliveredAt": lambda row, value: bool(row["DeliveredAt"]) and _after(row["DeliveredAt"], value),
    }  # fmt: skip
    return listing(list(account.drafts.values()), query, filters, ("ID",))


def _after(moment: str, value: str) -> bool:
    return datetime.fromisoformat(moment) > datetime.fromisoformat(value)


def _found(account: Account, key: str) -> Object:
    row = account.drafts.get(int(key)) if key.isdigit() else None
    if row is None:
        raise not_found()
    return row


def _check(given: Object) -> None:
    for name in ("ContactsList", "Template"):
        if name in given:
            raise CallbackError(400, "Invalid json input: object expected")
    for name in ("ContactsListID", "SegmentationID", "TemplateID"):
        if name in given and not isinstance(given[name], int):
            raise CallbackError(400, f'Invalid json input: number expected for "{name}"')
    if wrong := next((name for name in READ_ONLY if name in given), None):
        raise CallbackError(401, f'Internal error: MJ19 Setting a value for property "{wrong}" is not allowed')


def _create(account: Account, given: Object) -> Response:
    _check(given)
    for name in ("Locale", "Subject", "Sender"):
        if not given.get(name):
            raise CallbackError(400, f'MJ08 Property "{name}" is invalid: it is required')
    row: Object = {
        "ID": account.next_id(), "CreatedAt": account.time(), "ModifiedAt": "", "DeliveredAt": "", "Status": 0,
        "EditMode": "html2", "IsStarred": False, "Used": False, "Title": "", "SenderName": "", "SenderEmail": "",
        "ReplyEmail": "",
    } | given  # fmt: skip
    account.drafts[row["ID"]] = row
    return envelope([row], 201)


def _update(account: Account, row: Object, given: Object) -> Response:
    _check(given)
    if all(row.get(name) == value for name, value in given.items()):
        return Response(status_code=304)
    row |= given | {"ModifiedAt": account.time()}
    return envelope([row])


def _act(account: Account, method: str, row: Object, action: str, body: Any) -> Response:
    match method, action:
        case "GET" | "POST" | "PUT", "detailcontent":
            return _content(account, method, row, body)
        case "POST", "test":
            if not properties(body).get("Recipients"):
                raise CallbackError(400, 'Property "Recipients" is mandatory')
            _check_ready(account, row)
            return envelope([{"Status": "Draft"}], 201)
        case "POST" | "PUT", "schedule":
            _check_ready(account, row)
            row |= {"Status": PROGRAMMED, "_date": properties(body)["Date"]}
            return envelope([{"Date": row["_date"], "Status": "Programmed"}], 201)
        case "DELETE", "schedule":
            row["Status"] = 0
            return Response(status_code=204)
        case "POST", "send":
            _check_ready(account, row)
            row |= {"Status": PROGRAMMED}
            return envelope([{"Status": "Programmed"}], 201)
        case "GET", "status":
            return envelope([{"Status": {0: "Draft", PROGRAMMED: "Programmed", SENT: "Sent"}.get(row["Status"], "?")}])
    raise not_offered()


def _content(account: Account, method: str, row: Object, body: Any) -> Response:
    """POST empties the part that is left out, PUT keeps it."""
    held = account.contents.get(row["ID"], {})
    if method != "GET":
        given = {name: value for name, value in properties(body).items() if name in (*PARTS, "Headers")}
        held = account.contents[row["ID"]] = dict.fromkeys(PARTS, "") | (held if method == "PUT" else {}) | given
    return envelope([held] if held else [], 201 if method == "POST" else 200)


def _check_ready(account: Account, row: Object) -> None:
    content = account.contents.get(row["ID"], {})
    if row["Status"] not in (0, PROGRAMMED):
        raise CallbackError(400, "The campaign must be a draft or programmed")
    if not row.get("SenderEmail") or not row.get("ContactsListID"):
        raise CallbackError(400, "The campaign needs a sender and a contact list")
    if not any(content.get(name) for name in PARTS):
        raise CallbackError(400, "The campaign needs a text or HTML part")


def campaign(account: Account, method: str, path: list[str], query: Mapping[str, str], body: Any) -> Response:
    match method, path:
        case "GET", []:
            filters = {
                "ContactsListID": equals("ListID"), "From": equals("FromEmail"), "FromType": equals("CampaignType"),
                "FromTS": lambda row, value: _seconds(row["SendStartAt"]) > float(value),
                "ToTS": lambda row, value: _seconds(row["SendStartAt"]) <= float(value),
                "IsDeleted": truth("IsDeleted"), "IsNewsletterTool": truth("NewsLetterID"),
                "IsStarred": truth("IsStarred"), "Period": lambda row, value: value in ("Day", "Week", "Month", "Year"),
            }  # fmt: skip
            return listing(list(account.campaigns.values()), query, filters, ("ID", "ID DESC"))
        case "GET", [key]:
            rows = [row for row in account.campaigns.values() if key in (str(row["ID"]), row.get("CustomValue"))]
            if not rows:
                raise not_found()
            return envelope(rows)
    raise not_offered()


def _seconds(value: str) -> float:
    return datetime.fromisoformat(value).timestamp()
