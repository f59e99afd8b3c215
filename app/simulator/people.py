"""The stand-in's contacts, their values, lists and subscriptions.

Source: mailjet/api-documentation:guides/_contacts.md; mailjet-gem and hull-mailjet, their recorded answers.
"""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from app.simulator.account import Account
from app.simulator.callbacks import CallbackError
from app.simulator.replies import Object, envelope, equals, listing, not_found, not_offered, truth

ACTIONS = ("addforce", "addnoforce", "remove", "unsub")
WRITABLE = {"Email", "Name", "IsExcludedFromCampaigns"}


def contact(account: Account, method: str, path: list[str], query: Mapping[str, str], body: Any) -> Response:
    match method, path:
        case "GET", []:
            return listing(
                list(account.contacts.values()), query,
                {
                    "Campaign": lambda row, value: value in row.get("_campaigns", ()),
                    "ContactsList": lambda row, value: (int(value), row["ID"]) in account.members,
                    "IsExcludedFromCampaigns": truth("IsExcludedFromCampaigns"),
                },
                ("ID", "Email", "Email DESC", "CreatedAt", "CreatedAt DESC", "DeliveredCount", "DeliveredCount DESC"),
            )  # fmt: skip
        case "POST", []:
            return _create(account, properties(body))
        case "GET", [key]:
            return envelope([_found(account, key)])
        case "PUT", [key]:
            return _update(account, _found(account, key), properties(body))
        case "POST", [key, "managecontactslists"]:
            return _manage_lists(account, _found(account, key), properties(body))
    raise not_offered()


def properties(body: Any) -> Object:
    if not isinstance(body, dict):
        raise CallbackError(400, "Invalid json input: expected an object")
    return body


def _found(account: Account, key: str) -> Object:
    row = account.find_contact(key)
    if row is None:
        raise not_found()
    return row


def _create(account: Account, given: Object) -> Response:
    email = given.get("Email")
    if not isinstance(email, str) or "@" not in email:
        raise CallbackError(400, 'The Email property "Email" is invalid')
    _refuse_read_only(given)
    if account.find_contact(email) is not None:
        raise CallbackError(400, f'MJ18 A Contact resource with value "{email}" for Email already exists.')
    return envelope([account.add_contact(**{"email": email, **{k: v for k, v in given.items() if k != "Email"}})], 201)


def _refuse_read_only(given: Object) -> None:
    if other := next((name for name in given if name not in WRITABLE), None):
        raise CallbackError(401, f'Internal error: MJ19 Setting a value for property "{other}" is not allowed')


def _update(account: Account, row: Object, given: Object) -> Response:
    if given.get("Email", row["Email"]) != row["Email"]:
        raise CallbackError(400, "Not allowed to change email address in PUT")
    _refuse_read_only(given)
    if all(row[name] == value for name, value in given.items()):
        return Response(status_code=304)
    account.change_contact(row, **given)
    return envelope([row])


def contact_data(account: Account, method: str, path: list[str], query: Mapping[str, str], body: Any) -> Response:
    if len(path) != 1 or method not in ("GET", "PUT", "POST"):
        raise not_offered()
    row = _found(account, path[0])
    held = account.properties.setdefault(row["ID"], {})
    if method != "GET":
        given = _pairs(account, properties(body))
        if method == "PUT" and all(held.get(name) == value for name, value in given.items()):
            return Response(status_code=304)
        held.update(given)
        account.change_contact(row)
    pairs = [{"Name": name, "Value": value} for name, value in held.items()]
    return envelope([{"ContactID": row["ID"], "ID": row["ID"], "Data": pairs}])


def _pairs(account: Account, given: Object) -> Object:
    if "Data" not in given or not isinstance(given["Data"], list):
        raise CallbackError(400, f'Invalid key name: "{next(iter(given), "")}"')
    found = {pair["Name"]: pair["Value"] for pair in given["Data"]}
    for name, value in found.items():
        if name not in account.defined or value is None:
            raise CallbackError(400, f'Invalid key name: "{name}"')
    return {name: _as_text(value) for name, value in found.items()}


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def delete_contact(account: Account, number: str) -> Response:
    row = account.contacts.get(int(number)) if number.isdigit() else None
    if row is None:
        raise not_found()
    account.change_contact(row, Email=f"{row['ID']}@domain.invalid", Name="Anonymized")
    return Response(status_code=200)


# --- lists -------------------------------------------------------------------------------------------------------


def contacts_list(account: Account, method: str, path: list[str], query: Mapping[str, str], body: Any) -> Response:
    match method, path:
        case "GET", []:
            filters = {"Address": equals("Address"), "IsDeleted": truth("IsDeleted"), "Name": equals("Name")}
            sorts = ("ID", "ID DESC", "Name", "Name DESC", "CreatedAt", "CreatedAt DESC")
            return listing(list(account.lists.values()), query, filters, sorts)
        case "POST", []:
            name = properties(body).get("Name", "")
            if any(row["Name"] == name for row in account.lists.values()):
                raise CallbackError(400, f'MJ18 A ContactsList resource with value "{name}" for Name already exists.')
            return envelope([account.add_list(name)], 201)
        case "GET", [key]:
            return envelope([_list(account, key)])
        case "POST", [key, "managecontact"]:
            return envelope([manage(account, _list(account, key), properties(body))], 201)
        case "POST", [key, "managemanycontacts"]:
            return _begin_job(account, _list(account, key), properties(body))
        case "GET", [key, "managemanycontacts", job]:
            _list(account, key)
            return envelope([_look_at_job(account, job)])
    raise not_offered()


def _list(account: Account, key: str) -> Object:
    row = account.lists.get(int(key)) if key.isdigit() else None
    if row is None:
        raise not_found()
    return row


def manage(account: Account, row: Object, given: Object) -> Object:
    """Makes the contact if needed; properties must be defined first."""
    action, email = given.get("Action"), given.get("Email")
    if action not in ACTIONS or not isinstance(email, str) or "@" not in email:
        raise CallbackError(400, 'Invalid value for "Action" or "Email"')
    values = given.get("Properties") or {}
    if unknown := [name for name in values if name not in account.defined]:
        info = {"Properties": [{name: "Property not defined"} for name in unknown]}
        raise CallbackError(400, "Object properties invalid", info=info)
    contact = account.find_contact(email) or account.add_contact(email, Name=given.get("Name", ""))
    account.properties.setdefault(contact["ID"], {}).update({k: _as_text(v) for k, v in values.items()})
    set_membership(account, row, contact, action)
    return {"ContactID": contact["ID"], "Email": contact["Email"], "Action": action, "Name": contact["Name"],
            "Properties": values}  # fmt: skip


def set_membership(account: Account, row: Object, contact: Object, action: str) -> None:
    key = row["ID"], contact["ID"]
    held = account.members.get(key)
    if action == "remove":
        account.members.pop(key, None)
    elif action == "unsub":
        account.members[key] = {"IsUnsubscribed": True}
    elif held is None or action == "addforce":
        account.members[key] = {"IsUnsubscribed": False}
    subscribed = [m for (list_id, _), m in account.members.items() if list_id == row["ID"] and not m["IsUnsubscribed"]]
    row["SubscriberCount"] = len(subscribed)


def _manage_lists(account: Account, contact: Object, given: Object) -> Response:
    for wish in given.get("ContactsLists", []):
        set_membership(account, _list(account, str(wish["ListID"])), contact, wish["Action"])
    return envelope([given], 201)


def _begin_job(account: Account, row: Object, given: Object) -> Response:
    """Works at the second look, as a job does that takes a while."""
    number = account.next_id()
    account.jobs[number] = {"Status": "In Progress", "looks": 0, "list": row, "given": given}
    return envelope([{"JobID": number}], 201)


def _look_at_job(account: Account, key: str) -> Object:
    job = account.jobs.get(int(key)) if key.isdigit() else None
    if job is None:
        raise not_found()
    job["looks"] += 1
    if job["looks"] == 2:
        try:
            for contact in job["given"]["Contacts"]:
                manage(account, job["list"], contact | {"Action": job["given"]["Action"]})
            job["Status"] = "Completed"
        except CallbackError:
            job["Status"] = "Error"
    return {"Count": len(job["given"].get("Contacts", [])), "Status": job["Status"]}
