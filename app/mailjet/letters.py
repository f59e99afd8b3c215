"""A message as a caller gives it -> as Send v3.1 takes it, and Mailjet's result for it -> ours. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from app.mailjet.answers import texts
from app.mailjet.fields import Choice, Given, GivenNumber
from app.mailjet.vocabulary import as_id, as_text

MAX_ATTACHMENTS_BYTES = 15 * 1024 * 1024  # of one message, as the files are
MAX_CUSTOM_ID = 64  # what Mailjet keeps
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]*={0,2}\s*\Z")

_TRACKING = {"account_default": "account_default", "enabled": "enabled", "disabled": "disabled"}


def _tracking(value: Any) -> Any:
    return ("enabled" if value else "disabled") if isinstance(value, bool) else value


Tracking = Annotated[str, Choice(_TRACKING), BeforeValidator(_tracking)]


def _check_base64(text: str) -> str:
    packed = re.sub(r"\s", "", text)
    if not _BASE64.match(text) or len(packed) % 4:
        raise PydanticCustomError("base64", "must be base64")
    return packed


class Person(Given):
    """An address and its name."""

    email: str = Field(serialization_alias="Email", min_length=1, max_length=320, description="`Email`")
    name: str | None = Field(None, serialization_alias="Name", max_length=500, description="`Name`")


class Attachment(Given):
    """A file; with `content_id` it is shown within the HTML, as `cid:…`."""

    filename: str = Field(serialization_alias="Filename", min_length=1, max_length=255, description="`Filename`")
    content_type: str = Field(
        "application/octet-stream", serialization_alias="ContentType", min_length=1, description="`ContentType`"
    )
    data: Annotated[str, AfterValidator(_check_base64)] = Field(
        serialization_alias="Base64Content", description="base64 (`Base64Content`)"
    )
    content_id: str | None = Field(None, serialization_alias="ContentID", min_length=1, description="`ContentID`")


def _check_size(files: list[Attachment]) -> list[Attachment]:
    if sum(len(file.data) * 3 // 4 - file.data.count("=") for file in files) > MAX_ATTACHMENTS_BYTES:
        raise PydanticCustomError("too_long", "must be at most 15 MB in all")
    return files


class Letter(Given):
    """One message to send."""

    from_: Person = Field(alias="from", description="a sender that Mailjet has validated (`From`)")
    to: list[Person] = Field(serialization_alias="To", min_length=1, description="`To`")
    cc: list[Person] = Field([], serialization_alias="Cc", description="`Cc`")
    bcc: list[Person] = Field([], serialization_alias="Bcc", description="`Bcc`")
    reply_to: Person | None = Field(None, serialization_alias="ReplyTo", description="`ReplyTo`")
    subject: str | None = Field(None, serialization_alias="Subject", description="`Subject`")
    text: str | None = Field(None, serialization_alias="TextPart", description="`TextPart`")
    html: str | None = Field(None, serialization_alias="HTMLPart", description="`HTMLPart`")
    template_id: GivenNumber | None = Field(None, serialization_alias="TemplateID", description="`TemplateID`")
    variables: dict[str, Any] | None = Field(
        None, serialization_alias="Variables", description="for the template (`Variables`)"
    )
    attachments: Annotated[list[Attachment], AfterValidator(_check_size)] = Field(
        [], description="`Attachments`, `InlinedAttachments`: at most 15 MB in all"
    )
    custom_id: str | None = Field(
        None, serialization_alias="CustomID", min_length=1, max_length=MAX_CUSTOM_ID,
        description="comes back in events; left out, one is made (`CustomID`)",
    )  # fmt: skip
    payload: str | None = Field(
        None, serialization_alias="EventPayload", description="comes back in events (`EventPayload`)"
    )
    custom_campaign: str | None = Field(
        None, serialization_alias="CustomCampaign", min_length=1, description="`CustomCampaign`"
    )
    track_opens: Tracking | None = Field(None, serialization_alias="TrackOpens", description="`TrackOpens`")
    track_clicks: Tracking | None = Field(None, serialization_alias="TrackClicks", description="`TrackClicks`")
    headers: dict[str, str] | None = Field(None, serialization_alias="Headers", description="further ones (`Headers`)")

    @property
    def recipients(self) -> list[str]:
        return [person.email for person in (*self.to, *self.cc, *self.bcc)]

    def as_sent(self, custom_id: str) -> dict[str, Any]:
        """The message as Mailjet takes it."""
        plain = self.model_dump(by_alias=True, exclude_none=True, exclude={"from_", "attachments", "custom_id"})
        message = {name: value for name, value in plain.items() if value != []}
        message |= {"From": self.from_.model_dump(by_alias=True, exclude_none=True), "CustomID": custom_id}
        if self.template_id is not None or self.variables is not None:
            message["TemplateLanguage"] = True  # else `{{var:…}}` would be sent as it stands
        files = [a.model_dump(by_alias=True, exclude_none=True) for a in self.attachments]
        for name, inlined in (("Attachments", False), ("InlinedAttachments", True)):
            if kind := [file for file in files if ("ContentID" in file) is inlined]:
                message[name] = kind
        return message


# Mailjet's property -> our field, for pointers.
NAMES = {
    "From": "from", "To": "to", "Cc": "cc", "Bcc": "bcc", "ReplyTo": "reply_to", "Subject": "subject",
    "TextPart": "text", "HTMLPart": "html", "TemplateID": "template_id", "Variables": "variables",
    "Attachments": "attachments", "InlinedAttachments": "attachments", "CustomID": "custom_id",
    "EventPayload": "payload", "CustomCampaign": "custom_campaign", "TrackOpens": "track_opens",
    "TrackClicks": "track_clicks", "Headers": "headers", "Email": "email", "Name": "name", "Filename": "filename",
    "ContentType": "content_type", "Base64Content": "data", "ContentID": "content_id", "Messages": "messages",
}  # fmt: skip


class Receipt(BaseModel):
    """One recipient of an accepted message."""

    email: str | None
    message_id: str | None = Field(description="`MessageID`; null in the sandbox")
    message_guid: str | None = Field(description="`MessageUUID`; null in the sandbox")


class Refusal(BaseModel):
    """Why Mailjet refuses a message."""

    pointer: str = Field(description="the field of the request, where it can be told")
    message: str
    code: str = Field(description="Mailjet's, like `send-0008`")


class Result(BaseModel):
    """What became of one message."""

    status: Literal["accepted", "refused", "unknown"] = Field(
        description="`unknown`: Mailjet's answer was lost and it shows no such message so far; the same request with"
        " the same `Idempotency-Key` asks again, and sends it if it is not there"
    )
    custom_id: str = Field(description="as it comes back in events")
    recipients: list[Receipt] = []
    errors: list[Refusal] = []


def parse_result(given: Any, custom_id: str, index: int, pointer_of: Any) -> Result:
    """Mailjet's result for message `index`; one that tells neither success nor error is `unknown`.

    `pointer_of` tells our pointer within a message for a property of Mailjet's.
    """
    result = given if isinstance(given, Mapping) else {}
    status = str(result.get("Status", "")).lower()
    if status == "success":
        people = [who for kind in ("To", "Cc", "Bcc") for who in _objects(result.get(kind))]
        return Result(status="accepted", custom_id=custom_id, recipients=[_receipt(who) for who in people])
    if status == "error":
        errors = [
            refusal for fault in _objects(result.get("Errors")) for refusal in _refusals(fault, index, pointer_of)
        ]
        return Result(status="refused", custom_id=custom_id, errors=errors)
    return Result(status="unknown", custom_id=custom_id)


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """Those of a list; an object alone is one as well."""
    parts = value if isinstance(value, list) else [value]
    return [part for part in parts if isinstance(part, Mapping)]


def _receipt(who: Mapping[str, Any]) -> Receipt:
    return Receipt(
        email=as_text(who.get("Email")), message_id=as_id(who.get("MessageID")),
        message_guid=as_text(who.get("MessageUUID")),
    )  # fmt: skip


def _refusals(fault: Mapping[str, Any], index: int, pointer_of: Any) -> list[Refusal]:
    # In a message's own result a name may begin at the request or at the message.
    named = (re.sub(r"^Messages\[\d+\]\.?", "", name) for name in texts(fault.get("ErrorRelatedTo")))
    pointers = [pointer_of(name) for name in named] or [""]
    message = as_text(fault.get("ErrorMessage")) or "Mailjet refuses it"
    code = as_text(fault.get("ErrorCode")) or "mailjet_refused"
    return [Refusal(pointer=f"/messages/{index}{pointer}", message=message, code=code) for pointer in pointers]
