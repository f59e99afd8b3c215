"""The stand-in's Send API v3.1 and what can be read of messages afterwards.

Source: mailjet/api-documentation:guides/_send-api-v31.md, its table of errors; mailjet-gem, its recorded answers.
"""

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
from starlette.responses import Response

from app.simulator.account import Account
from app.simulator.replies import FlatError, Object, envelope, equals, listing, not_found, not_offered, to_json

MOST_MESSAGES, MOST_RECIPIENTS = 50, 50
STATUSES = ("processed", "queued", "sent", "opened", "clicked", "bounce", "spam", "unsub", "blocked", "softbounced",
            "hardbounced", "deferred")  # fmt: skip
SHOWN_ON_REQUEST = ("Subject", "ContactAlt", "CustomID")


def send(account: Account, body: Any) -> Response:
    """Message by message: some may be accepted while others fail; then the status is 400."""
    if not isinstance(body, dict):
        raise FlatError(400, "mj-0002", "Malformed JSON, please review the syntax and properties types.")
    messages = body.get("Messages")
    if not isinstance(messages, list):
        raise FlatError(400, "mj-0003", '"Messages" is mandatory', ["Messages"])
    if not 1 <= len(messages) <= MOST_MESSAGES:
        code = "mj-0008" if messages else "mj-0007"
        raise FlatError(400, code, '"Messages" must have between 1 and 50 entries', ["Messages"])
    sandbox = body.get("SandboxMode") is True
    results = [_one(account, message, sandbox) for message in messages]
    failed = any(result["Status"] == "error" for result in results)
    return to_json({"Messages": results}, 400 if failed else 200)


def _one(account: Account, message: Object, sandbox: bool) -> Object:
    fault = _fault_of(account, message)
    if fault is not None:
        code, status, text, related = fault
        told = {"ErrorIdentifier": str(uuid.uuid4()), "ErrorCode": code, "StatusCode": status, "ErrorMessage": text}
        return {"Status": "error", "Errors": [told | {"ErrorRelatedTo": related}]}
    result: Object = {"Status": "success", "CustomID": message.get("CustomID", "")}
    for kind in ("To", "Cc", "Bcc"):
        result[kind] = [_accept(account, message, who, sandbox) for who in message.get(kind, [])]
    return result


def _accept(account: Account, message: Object, who: Object, sandbox: bool) -> Object:
    if sandbox:
        return {"Email": who["Email"], "MessageUUID": "", "MessageID": 0, "MessageHref": ""}
    contact = account.find_contact(who["Email"]) or account.add_contact(who["Email"], Name=who.get("Name", ""))
    row = account.add_message(
        UUID=str(uuid.uuid4()), ContactID=contact["ID"], ContactAlt=contact["Email"],
        Subject=message.get("Subject", ""), CustomID=message.get("CustomID", ""), AttemptCount=0,
        AttachmentCount=len(message.get("Attachments", [])), FromType=1,
    )  # fmt: skip
    account.histories[row["ID"]] = [
        {"EventAt": int(account.now().timestamp()), "EventType": "sent", "State": "", "Comment": "", "Useragent": "",
         "UseragentID": 0}
    ]  # fmt: skip
    account.happened.append(_sent(account, message, row))
    href = f"https://api.mailjet.com/v3/REST/message/{row['ID']}"
    return {"Email": who["Email"], "MessageUUID": row["UUID"], "MessageID": row["ID"], "MessageHref": href}


def _sent(account: Account, message: Object, row: Object) -> Object:
    """The event of a message that arrived."""
    return {
        "event": "sent", "time": int(account.now().timestamp()), "MessageID": row["ID"], "Message_GUID": row["UUID"],
        "email": row["ContactAlt"], "mj_campaign_id": 0, "mj_contact_id": row["ContactID"],
        "customcampaign": message.get("CustomCampaign", ""), "CustomID": row["CustomID"],
        "Payload": message.get("EventPayload", ""), "smtp_reply": "sent (250 2.0.0 OK)",
    }  # fmt: skip


def _fault_of(account: Account, message: Object) -> tuple[str, int, str, list[str]] | None:
    sender = message.get("From")
    if not isinstance(sender, dict) or not sender.get("Email"):
        return "mj-0003", 400, '"From.Email" is mandatory', ["From"]
    if sender["Email"].endswith("@refused.example"):
        return "send-0008", 403, f'"{sender["Email"]}" is not an authorized sender email address', ["From"]
    recipients = [(kind, n, who) for kind in ("To", "Cc", "Bcc") for n, who in enumerate(message.get(kind, []))]
    if not message.get("To"):
        return "mj-0003", 400, '"To" is mandatory', ["To"]
    for kind, number, who in recipients:
        if "." not in who.get("Email", "").rpartition("@")[2]:
            told = f'"{who.get("Email")}" is an invalid email address.'
            return "mj-0013", 400, told, [f"{kind}[{number}].Email"]
    if len({who["Email"] for _, _, who in recipients}) > MOST_RECIPIENTS:
        return "send-0015", 400, "too many recipients", ["To", "Cc", "Bcc"]
    parts = [name for name in ("TextPart", "HTMLPart") if message.get(name)]
    if not parts and "TemplateID" not in message:
        return "send-0003", 400, 'At least "HTMLPart", "TextPart" or "TemplateID" must be provided.', [
            "HTMLPart", "TextPart", "TemplateID"]  # fmt: skip
    if parts and "TemplateID" in message:
        return "send-0004", 400, "content given twice", ["TemplateID", *parts]
    if "TemplateID" in message and not isinstance(message["TemplateID"], int):
        return "mj-0004", 400, 'Type mismatch. Expected type "int".', ["TemplateID"]
    if len(message.get("Subject", "")) > 255:
        return "mj-0006", 400, "too long", ["Subject"]
    return None


# --- read --------------------------------------------------------------------------------------------------------


def message(account: Account, method: str, path: list[str], query: Mapping[str, str], body: Any) -> Response:
    match method, path:
        case "GET", []:
            filters = {
                "Campaign": equals("CampaignID"), "Contact": equals("ContactID"), "ContactAlt": equals("ContactAlt"),
                "CustomID": equals("CustomID"), "FromType": equals("FromType"),
                "FromTS": lambda row, value: _seconds(row["ArrivedAt"]) > _seconds(value),
                "ToTS": lambda row, value: _seconds(row["ArrivedAt"]) <= _seconds(value),
                "MessageState": equals("StateID"),
                "MessageStatus": lambda row, value: STATUSES.index(row["Status"]) == int(value),
            }  # fmt: skip
            sorts = ("ID", "ID DESC", "ArrivedAt", "ArrivedAt DESC")
            rows = [{k: v for k, v in row.items() if k != "FromType"} | {"FromType": row.get("FromType", 1)}
                    for row in account.messages.values()]  # fmt: skip
            return _hidden(listing(rows, query, filters, sorts), query)
        case "GET", [key]:
            row = account.messages.get(int(key)) if key.isdigit() else None
            if row is None:
                raise not_found()
            return _hidden(envelope([row]), query)
    raise not_offered()


def history(account: Account, method: str, path: list[str], query: Mapping[str, str], body: Any) -> Response:
    """An unknown message is no fault: 200 with nothing."""
    if method != "GET" or len(path) != 1:
        raise not_offered()
    return envelope(account.histories.get(int(path[0]), []) if path[0].isdigit() else [])


def _hidden(response: Response, query: Mapping[str, str]) -> Response:
    """Subject, address and custom id are `""` unless asked for."""
    content = orjson.loads(response.body)
    for row in content["Data"]:
        row.pop("FromType", None)
        for name in SHOWN_ON_REQUEST:
            if query.get(f"Show{name}", "").lower() not in ("true", "1"):
                row[name] = ""
    return to_json(content)


def _seconds(value: str) -> float:
    return float(value) if value.isdigit() else datetime.fromisoformat(value).timestamp()
