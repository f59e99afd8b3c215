"""Mailjet's SMS API v4, in our words, and how many messages a text makes.

Source: Mailjet SMS API Guides: Send SMS API, SMS Statistics, Limitations, Concatenation and Encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from app.mailjet.door import Door
from app.mailjet.errors import MailjetNotFound
from app.mailjet.fields import (
    Choice,
    Decimal,
    Given,
    Listed,
    Moment,
    Number,
    Shown,
    Text,
    UnixTime,
    mailjet,
    to_mailjet,
    word_of,
)
from app.mailjet.pages import Page, Place
from app.mailjet.vocabulary import as_text

Encoding = Literal["gsm7", "unicode"]

MOST_PARTS = 5
E164 = r"^\+[1-9][0-9]{6,14}$"
STATUSES = {
    "unknown": 0, "sent_pending": 1, "sent": 2, "delivered": 3, "rejected_operator": 4, "rejected_undelivered": 5,
    "rejected_expired": 6, "rejected_incorrect_delivery": 7, "rejected_network": 8, "rejected_dnd": 9,
    "rejected_from_blacklist": 10, "rejected_to_blacklist": 11, "rejected_anti_flood": 12, "rejected_system_error": 13,
    "invalid_phone_number": 14, "rejected_insufficent_funds": 15, "rejected_daily_limit_reached": 16,
}  # fmt: skip

# GSM 03.38: its table, and the characters that take two places.
_GSM7 = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM7_TWICE = frozenset("\f^{}\\[~]|€")
_ROOM = {"gsm7": (160, 153), "unicode": (70, 67)}  # in the only part, and in each of several


def encoding_of(text: str) -> Encoding:
    """One character outside of GSM-7 switches the whole text to Unicode."""
    return "gsm7" if set(text) <= _GSM7 | _GSM7_TWICE else "unicode"


def parts_of(text: str) -> int:
    """How many SMS the text makes: GSM-7 160, 306, 459 … characters, else 70, 134, 201 …"""
    encoding = encoding_of(text)
    if encoding == "gsm7":
        size = sum(2 if character in _GSM7_TWICE else 1 for character in text)
    else:
        size = len(text.encode("utf-16-le", "surrogatepass")) // 2
    alone, each = _ROOM[encoding]
    return 1 if size <= alone else -(-size // each)


class Cost(Shown):
    """What it costs."""

    value: Decimal = mailjet("Value")
    currency: Text = mailjet("Currency")


def _cost(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value
    return {"Value": value} if as_text(value) or isinstance(value, float) else None


def _status_word(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return value.get("Name") or value.get("Code")


class Sms(Shown):
    """One text to one number. Mailjet spells some names in two ways; ids are numbers or UUIDs."""

    message_id: Text = mailjet("MessageID", "MessageId", "ID")
    from_: Text = Field(
        None, validation_alias="From", serialization_alias="from", description="sender id; carriers may replace it"
    )
    to: Text = mailjet("To")
    text: Text = mailjet("Text")
    parts: Number = mailjet("SMSCount", "SmsCount")
    cost: Annotated[Cost | None, BeforeValidator(_cost)] = mailjet("Cost")
    status: Annotated[str | None, word_of(STATUSES), BeforeValidator(_status_word)] = mailjet("Status")
    created_at: Moment = mailjet("CreationTS")
    sent_at: Moment = mailjet("SentTS")

    def shown(self) -> dict[str, Any]:
        """With parts and encoding by the text, where Mailjet does not tell them."""
        plain = self.model_dump(by_alias=True)
        plain["encoding"] = encoding_of(self.text) if self.text else None
        if self.parts is None and self.text:
            plain["parts"] = parts_of(self.text)
        return plain


class NewSms(Given):
    """A text to send."""

    from_: str = Field(
        alias="from", pattern=r"^([A-Za-z0-9 ]{1,11}|\+?[0-9]{3,15})$", description="sender id: letters and digits"
    )
    to: str = Field(pattern=E164, description="number in E.164, like +33612345678", examples=["+33612345678"])
    text: str = Field(min_length=1, max_length=765)


class SmsFilters(Listed):
    """Which texts."""

    to: Annotated[str, Field(pattern=E164)] | None = to_mailjet("To", description="to this number")
    since: UnixTime | None = to_mailjet("FromTS", description="made after this time")
    until: UnixTime | None = to_mailjet("ToTS", description="made until this time")
    status: list[Annotated[str, Choice(STATUSES)]] = to_mailjet(
        "StatusCode", [], max_length=20, description="any of these, where it is repeated"
    )


async def send_sms(door: Door, sms: NewSms) -> Sms:
    """Not repeated where it may have been sent."""
    body = {"From": sms.from_, "To": sms.to, "Text": sms.text}
    answer = await door.change("sms_send", "POST", "/v4/sms-send", body, again=False)
    told = answer.json_object()
    return Sms.model_validate({"From": sms.from_, "To": sms.to, "Text": sms.text} | told)


async def list_sms(door: Door, filters: Mapping[str, str | int], place: Place, limit: int) -> Page:
    """The newest first, by offset. Mailjet may give fewer in a call than asked for: only an empty one is the end.

    What was shown before and new texts moved down to here is left out.
    """
    items: list[dict[str, Any]] = []
    offset, last_id = place.offset, place.last_id
    while len(items) < limit:
        asked: dict[str, str | int] = {**filters, "Limit": limit - len(items)} | ({"Offset": offset} if offset else {})
        try:
            part = (await door.ask("sms_list", "/v4/sms", asked)).data()[: limit - len(items)]
        except MailjetNotFound:
            part = []
        if not part:
            return Page(items, None)
        offset += len(part)
        ids = [_id_of(item) for item in part]
        items += part[ids.index(last_id) + 1 :] if last_id in ids else part
        last_id = ids[-1]
    return Page(items, Place(offset, last_id))


def _id_of(item: Mapping[str, Any]) -> str:
    return Sms.model_validate(item).message_id or ""
