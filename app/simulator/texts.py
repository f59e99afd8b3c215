"""The stand-in's SMS API v4.

Source: Mailjet SMS API Guides: Send SMS API, SMS Statistics, Error Codes.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from app.simulator.account import Account
from app.simulator.replies import FlatError, number, to_json

PAGE = 21  # one page of the documents says so many in a call, another 1000


def sms(account: Account, method: str, path: str, query: Mapping[str, str], body: Any) -> Response:
    match method, path:
        case "POST", "/v4/sms-send":
            return _send(account, body)
        case "GET", "/v4/sms":
            return _list(account, query)
    raise FlatError(404, "mj-0019", "Not found")


def _send(account: Account, body: Any) -> Response:
    if not isinstance(body, dict):
        raise FlatError(400, "mj-0002", "Malformed JSON")
    for name in ("From", "To", "Text"):
        if not isinstance(body.get(name), str) or not body[name]:
            raise FlatError(400, "mj-0003", f'"{name}" is mandatory', [name])
    seconds = int(account.now().timestamp())
    row = {
        "From": body["From"], "To": body["To"], "Text": body["Text"], "MessageId": str(uuid.uuid4()), "SmsCount": 1,
        "CreationTS": seconds, "SentTS": "", "Cost": {"Value": 0.0012, "Currency": "EUR"},
        "Status": {"Code": 1, "Name": "sent_pending", "Description": "Message is being sent"},
    }  # fmt: skip
    account.sms.insert(0, row)
    return to_json(row)


def _list(account: Account, query: Mapping[str, str]) -> Response:
    found = [
        {("MessageID" if name == "MessageId" else "SMSCount" if name == "SmsCount" else name): value
         for name, value in row.items() if name != "Text"}
        for row in account.sms
        if query.get("To", row["To"]) == row["To"]
        and str(row["Status"]["Code"]) in query.get("StatusCode", str(row["Status"]["Code"])).split(",")
        and number(query, "FromTS", 0) <= row["CreationTS"] <= number(query, "ToTS", 2**53)
    ]  # fmt: skip
    offset = number(query, "Offset", 0)
    page = found[offset : offset + min(number(query, "Limit", PAGE), PAGE)]
    return to_json({"Data": page, "Count": len(page)})
