"""The kinds of values in Mailjet's objects, as pydantic reads and writes them. Pure.

What Mailjet sends is read leniently: its samples show numbers and booleans as text, dates may be `""`, references
without a value are left out. What does not fit is null and never an error, since the rest of the object is good. What a
caller sends is checked strictly, because Mailjet would silently ignore it.

A model for reading names each field's property with `mailjet(…)`; one for writing, or for filters, does so with
`to_mailjet(…)`, and `model_dump(by_alias=True)` is then what Mailjet gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, cast

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from app.clock import rfc3339
from app.mailjet.answers import whole_number
from app.mailjet.vocabulary import as_bool, as_id, as_text

MAX_ID = 2**63 - 1


class Shown(BaseModel):
    """An object of Mailjet's in our names; made by `model_validate` from the object as Mailjet sends it."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Given(BaseModel):
    """What a caller sends. Only what was given is sent on, since Mailjet's PUT changes only what it names."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    def to_mailjet(self, *names: str) -> dict[str, Any]:
        """The given ones of these fields (all without names) by Mailjet's names."""
        return self.model_dump(by_alias=True, exclude_unset=True, include=set(names) or None)


class Listed(Given):
    """The filters of one list."""

    def query(self) -> dict[str, str | int]:
        """The filters that are set, as Mailjet's query parameters."""
        dumped = self.model_dump(by_alias=True, exclude_none=True, exclude={"limit", "cursor"})
        return {name: _told(value) for name, value in dumped.items() if value != []}


def mailjet(*names: str, description: str = "") -> Any:
    """A field read from the first of these properties that is there."""
    shown = f"`{names[0]}`"
    told = f"{description} ({shown})" if description else shown
    return Field(None, validation_alias=AliasChoices(*names), description=told)


def to_mailjet(name: str, default: Any = None, *, description: str = "", **more: Any) -> Any:
    """A field written as this property."""
    told = f"{description} (`{name}`)" if description else f"`{name}`"
    return Field(default, serialization_alias=name, description=told, **more)


def _told(value: Any) -> str | int:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(str(part) for part in value)  # Mailjet heeds the first of a repeated one; a comma list is OR
    return cast("str | int", value)


# --- read --------------------------------------------------------------------------------------------------------


def _moment(value: Any) -> str | None:
    seconds = whole_number(value)
    try:
        if seconds is not None:
            return rfc3339(datetime.fromtimestamp(seconds, UTC)) if seconds else None
        if not isinstance(value, str) or not value:
            return None
        moment = datetime.fromisoformat(value)
        return rfc3339(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError, OSError):
        return None


def _decimal(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None
    return number if number is not None and abs(number) < 1e15 else None


Id = Annotated[str | None, BeforeValidator(as_id)]
Text = Annotated[str | None, BeforeValidator(as_text)]
Flag = Annotated[bool | None, BeforeValidator(as_bool)]
Number = Annotated[int | None, BeforeValidator(whole_number)]
Decimal = Annotated[float | None, BeforeValidator(_decimal)]
Moment = Annotated[
    str | None,
    BeforeValidator(_moment),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}),
]


def word_of(words: Mapping[str, int]) -> Any:
    """For reading an enumeration: Mailjet's number, or its word, as ours; an unknown one as it came."""
    by_number = {number: word for word, number in reversed(list(words.items()))}

    def read(value: Any) -> str | None:
        number = int(value) if isinstance(value, int) and not isinstance(value, bool) else whole_number(value)
        if number is None:
            text = as_text(value)
            return text if text is None or not re.fullmatch(r"-[0-9]{1,3}", text) else by_number.get(int(text), text)
        return by_number.get(number, str(number))

    return BeforeValidator(read)


# --- written -----------------------------------------------------------------------------------------------------


def _given_id(value: Any) -> Any:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,19}", text) or not 0 < int(text) <= MAX_ID:
        raise PydanticCustomError("mailjet_id", "must be an id of Mailjet's: a whole number above 0, as text")
    return text


def _given_flag(value: Any) -> Any:
    found = {"true": True, "false": False}.get(value) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise PydanticCustomError("bool_parsing", "must be true or false")
    return found


def _given_moment(value: Any) -> Any:
    try:
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ].+", value, re.ASCII):
            # A blank before the offset is the `+` that somebody forgot to escape.
            moment = datetime.fromisoformat(re.sub(r" (?=\d\d:\d\d$)", "+", value[:10] + "T" + value[11:]).upper())
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise PydanticCustomError("time", "must be an RFC 3339 time with its offset, like 2026-05-03T10:00:00Z")


_ID_SCHEMA = {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"}
_TIME_SCHEMA = {"type": "string", "format": "date-time"}

GivenId = Annotated[str, BeforeValidator(_given_id), WithJsonSchema(_ID_SCHEMA)]
GivenNumber = Annotated[GivenId, PlainSerializer(int)]
"""An id that Mailjet wants as a number: as text it answers "Invalid json input"."""
GivenFlag = Annotated[bool, BeforeValidator(_given_flag), WithJsonSchema({"type": "boolean"})]
UnixTime = Annotated[
    datetime,
    BeforeValidator(_given_moment),
    PlainSerializer(lambda moment: int(moment.timestamp())),
    WithJsonSchema(_TIME_SCHEMA),
]
IsoTime = Annotated[
    datetime,
    BeforeValidator(_given_moment),
    PlainSerializer(lambda moment: rfc3339(moment.replace(microsecond=0))),
    WithJsonSchema(_TIME_SCHEMA),
]
GivenText = Annotated[str, Field(min_length=1, max_length=500)]


class Choice:
    """`Annotated[str, Choice(words)]`: one of these words or its number, in any case and with blanks or underscores;
    written as Mailjet's value. `documented` are those that the documentation shows, unless all."""

    def __init__(self, words: Mapping[str, int] | Mapping[str, str], documented: Iterable[str] = ()) -> None:
        self._values: dict[str, int | str] = dict(words)
        self._shown = list(documented or words)
        self._known = {_plain(word): word for word in words}
        self._known |= {str(value).lower(): word for word, value in reversed(self._values.items())}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(self._values.__getitem__)
        return core_schema.no_info_before_validator_function(self._check, handler(source), serialization=written)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": self._shown}

    def _check(self, value: Any) -> str:
        is_word = isinstance(value, str | int) and not isinstance(value, bool)
        found = self._known.get(_plain(str(value))) if is_word else None
        if found is None:
            raise PydanticCustomError("enum", "must be one of {words}", {"words": ", ".join(self._shown)})
        return found


def _plain(word: str) -> str:
    return word.strip().lower().replace("_", " ").replace("-", " ") if not re.fullmatch(r"\s*-?\d+\s*", word) else word
