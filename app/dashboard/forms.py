"""Forms and addresses as people send them: blanks are left out, everything else is checked by the models of REST."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar, get_origin
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.errors import BadRequest, FieldError, Invalid

Pairs = Iterable[tuple[str, str]]
Model = TypeVar("Model", bound=BaseModel)

MAX_FIELDS = 500
TIMES = frozenset({"after", "before", "received_after", "received_before"})
_SHORT_TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?)?")


class Form:
    """The fields of one form that was sent."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = [(name, value.strip()) for name, value in pairs]

    def text(self, name: str) -> str:
        """The last value of a field, empty where there is none."""
        return next((value for key, value in reversed(self.pairs) if key == name), "")

    def under(self, prefix: str) -> list[tuple[str, str]]:
        """The fields that begin with `prefix`, without it."""
        return [(name.removeprefix(prefix), value) for name, value in self.pairs if name.startswith(prefix)]


async def read_form(request: Request) -> Form:
    """A dependency. The size of a body is limited for all of REST. Raises BadRequest."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = (await request.body()).decode("utf-8", "replace")
    if body and kind != "application/x-www-form-urlencoded":
        raise BadRequest("send it as application/x-www-form-urlencoded")
    try:
        return Form(parse_qsl(body, keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise BadRequest("the form has too many fields") from None


def whole_times(pairs: Pairs) -> list[tuple[str, str]]:
    """The same with times as REST wants them: a person types a day, or hours and minutes, and means UTC as everywhere
    here."""
    return [(name, _whole_time(value.strip()) if name in TIMES else value) for name, value in pairs]


def _whole_time(text: str) -> str:
    short = _SHORT_TIME.fullmatch(text)
    return f"{short[1]}T{short[2] or '00:00'}{short[3] or ':00'}Z" if short else text


def given_fields(request: Request) -> dict[str, list[str]]:
    """The filters of an address, to be shown again and to lead to its other pages; the cursor is none."""
    pairs = [(name, value) for name, value in request.query_params.multi_items() if value.strip()]
    return {name: [v for n, v in pairs if n == name] for name, _ in pairs if name != "cursor"}


def parse_fields(model: type[Model], pairs: Pairs) -> Model:
    """The model from fields that may repeat. A blank is no value. Raises Invalid, naming each field."""
    given: dict[str, Any] = {}
    for name, value in pairs:
        if value.strip():
            given.setdefault(name, []).append(value.strip())
    values = {name: found if _is_list(model, name) else found[-1] for name, found in given.items()}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [_fault(fault) for fault in error.errors(include_url=False, include_input=False)]
        told = "; ".join(f"{fault.pointer}: {fault.message}" for fault in faults[:3])
        raise Invalid(told, errors=faults) from None


def _is_list(model: type[BaseModel], name: str) -> bool:
    field = model.model_fields.get(name)
    return field is not None and get_origin(field.annotation) is list


def _fault(fault: Any) -> FieldError:
    name = str(fault["loc"][0]) if fault["loc"] else "form"
    if fault["type"] == "extra_forbidden":
        return FieldError(name, "there is no such filter", "unknown_parameter")
    return FieldError(name, fault["msg"], fault["type"])
