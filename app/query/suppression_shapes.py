"""What suppressions and recipients look like from outside, and what may be asked of them."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.mailjet.vocabulary import normal_email
from app.models import SuppressionReason, SuppressionScope
from app.query.shapes import EventModel, ListModel
from app.views import EVENT_ID, clean

MAX_CHECKED = 1000
MAX_EMAIL_CHARS = 320  # 64 for the local part, 255 for the domain (RFC 5321), and the `@`
MAX_TOLD_CHARS = 500  # as the column has it
_ADDRESS = re.compile(r"[^\s\x00-\x1f\x7f]+@[^\s\x00-\x1f\x7f@]+")
_EXAMPLE: dict[str, Any] = {
    "id": "5b1f0c52-8a43-8d0e-9a51-3f9c2b7d1e60", "email": "a@example.com", "reason": "hard_bounce",
    "scope": "address", "list_id": None, "event_id": EVENT_ID, "since": "2026-05-03T10:00:00Z", "comment": None,
}  # fmt: skip


def parse_address(text: str) -> str:
    """The address as it is stored, its domain in small letters. Raises ValueError for what is none."""
    if not _ADDRESS.fullmatch(text) or clean(text) != text:
        raise PydanticCustomError("email", "must be an address like a@example.com, without white space")
    return normal_email(text)


def parse_told_address(text: str) -> str:
    """What Mailjet may have told of as an address, such as one without `@` or with a tab in it, as it is stored. Raises
    ValueError for what no event can have: neither NUL nor lone surrogates come into a column."""
    if not text.strip() or clean(text) != text:
        raise PydanticCustomError("email", "must be an address, without NUL or lone surrogates")
    return normal_email(text)


def _list_id(text: str) -> str:
    if not text.strip("0"):
        raise PydanticCustomError("list_id", "must be Mailjet's id of a list; 0 is none")
    return text


Address = Annotated[str, Field(max_length=MAX_EMAIL_CHARS, examples=["a@example.com"]), AfterValidator(parse_address)]
ToldAddress = Annotated[
    str,
    Field(max_length=MAX_TOLD_CHARS, examples=["a@example.com"], description="also one that Mailjet tells malformed"),
    AfterValidator(parse_told_address),
]
ListId = Annotated[str, Field(pattern=r"^[0-9]{1,40}$", examples=["17"]), AfterValidator(_list_id)]
Comment = Annotated[
    str,
    Field(min_length=1, max_length=500, description="why, in a person's words; kept", examples=["asked by telephone"]),
    AfterValidator(lambda text: clean(text) or ""),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewSuppression(_Request):
    """An address that is not to be mailed, or not for one list."""

    email: Address
    scope: SuppressionScope | None = Field(None, description="`list` with `list_id`, else `address`")
    list_id: ListId | None = Field(None, description="only for this list")
    comment: Comment

    @model_validator(mode="after")
    def _scope_fits(self) -> Self:
        check_scope(self.scope, self.list_id)
        return self


class Lift(_Request):
    """What is to end; without `scope` and `reason` all of the address, its lists included."""

    email: ToldAddress
    scope: SuppressionScope | None = Field(None, description="only what concerns the address, or one list")
    list_id: ListId | None = Field(None, description="only what concerns this list")
    reason: SuppressionReason | None = Field(None, description="only what has this reason")
    comment: Comment

    @model_validator(mode="after")
    def _scope_fits(self) -> Self:
        check_scope(self.scope, self.list_id)
        return self


def check_scope(scope: SuppressionScope | None, list_id: str | None) -> None:
    if scope is SuppressionScope.LIST and list_id is None:
        raise PydanticCustomError("list_id_missing", "scope `list` needs a `list_id`")
    if scope is SuppressionScope.ADDRESS and list_id is not None:
        raise PydanticCustomError("list_id_unfit", "scope `address` has no `list_id`")


class Check(_Request):
    """Addresses that somebody is about to mail."""

    emails: Annotated[list[ToldAddress], Field(min_length=0, max_length=MAX_CHECKED)]
    list_id: ListId | None = Field(None, description="the list the mail is for: its unsubscribes count as well")


class SuppressionModel(BaseModel):
    """One reason not to mail an address."""

    model_config = ConfigDict(title="Suppression", json_schema_extra={"example": _EXAMPLE})

    id: str
    email: str | None = Field(description="null for a person who was erased and stays suppressed")
    reason: SuppressionReason
    scope: SuppressionScope
    list_id: str | None
    event_id: str | None = Field(description="the event that caused it; it may be deleted by now")
    since: str = Field(json_schema_extra={"format": "date-time"})
    comment: str | None = Field(description="why, where a person added it")


class SuppressionList(ListModel):
    """A page of suppressions."""

    data: list[SuppressionModel]


class LiftResult(BaseModel):
    """What was ended, and what is still in force for the address."""

    email: str
    lifted: list[SuppressionModel]
    suppressions: list[SuppressionModel]


class ScopeModel(BaseModel):
    """One suppression of an address that was checked."""

    model_config = ConfigDict(title="CheckedSuppression")

    reason: SuppressionReason
    scope: SuppressionScope
    list_id: str | None
    since: str = Field(json_schema_extra={"format": "date-time"})


class CheckedModel(BaseModel):
    """May this address be mailed?"""

    model_config = ConfigDict(title="CheckedAddress")

    email: str
    suppressed: bool
    reason: SuppressionReason | None = Field(description="the strongest of those that count; null: not suppressed")
    suppressions: list[ScopeModel] = Field(description="all of the address, also for lists that were not asked for")


class CheckList(BaseModel):
    """One row for each address, in the order asked."""

    data: list[CheckedModel]


class ActModel(BaseModel):
    """What a person did about an address."""

    model_config = ConfigDict(title="SuppressionAct")

    act: Literal["add", "lift"]
    email: str
    scope: SuppressionScope | None = Field(description="null: all of the address")
    list_id: str | None
    reason: SuppressionReason | None
    comment: str
    at: str = Field(json_schema_extra={"format": "date-time"})


class RecipientModel(BaseModel):
    """What happened to one address."""

    model_config = ConfigDict(
        title="Recipient",
        json_schema_extra={
            "example": {
                "email": "a@example.com",
                "known": True,
                "spellings": ["a@example.com"],
                "counts": {"bounce": 1, "sent": 12},
                "first_event_at": "2026-03-01T08:00:00Z",
                "last_event_at": "2026-05-03T10:00:00Z",
                "suppressed": True,
                "suppressions": [_EXAMPLE],
                "history": [],
                "events": [],
            }
        },
    )

    email: str
    known: bool
    spellings: list[str] = Field(description="the addresses that were looked for")
    counts: dict[str, int] = Field(description="events by Mailjet's word; an arrival counts once")
    first_event_at: str | None = Field(json_schema_extra={"format": "date-time"})
    last_event_at: str | None = Field(json_schema_extra={"format": "date-time"})
    suppressed: bool = Field(description="is the address suppressed? Unsubscribes from lists are in `suppressions`")
    suppressions: list[SuppressionModel] = Field(description="all in force, the strongest reason first")
    history: list[ActModel] = Field(description="what people added and lifted, the latest first, at most 50")
    events: list[EventModel] = Field(description="the latest 50, the newest first")
