"""The settings told to people: the table of all of them, and those in force."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from app.settings.masking import mask_url
from app.settings.model import FROM_FILE, Settings
from app.settings.names import PREFIX

# Mailjet's own SDKs use these two names; they are the connection `default`.
ALIASES = {
    "MJ_APIKEY_PUBLIC": ("connections", "default", "api_key"),
    "MJ_APIKEY_PRIVATE": ("connections", "default", "secret_key"),
}


class SettingRow(BaseModel):
    """One row of the settings reference."""

    variable: str
    default: str
    description: str
    secret: bool
    """Has a `…_FILE` twin."""


def effective_rows(settings: Settings) -> list[tuple[str, str]]:
    """(variable, value) of every setting in force, secrets masked, URLs without their passwords."""
    rows: list[tuple[str, str]] = []
    values: Settings = settings.model_copy(
        update={"connections": settings.effective_connections, "webhooks": settings.effective_webhooks}
    )
    for name in Settings.model_fields:
        value = getattr(values, name)
        if isinstance(value, dict):
            for key, group in sorted(value.items()):
                prefix = f"{PREFIX}{name.upper()}__{key.upper()}__"
                rows += [(prefix + sub.upper(), _shown(getattr(group, attribute)))
                         for sub, attribute in attributes_of(type(group)).items()]  # fmt: skip
        else:
            shown = mask_url(value.get_secret_value()) if name == "database_url" else _shown(value)
            rows.append((PREFIX + name.upper(), shown))
    return rows


def reference_rows() -> list[SettingRow]:
    """The table of all settings, made from the code; the README repeats it and a test holds the two together."""
    rows = list(_reference_of(Settings, PREFIX))
    for alias, path in ALIASES.items():
        target = PREFIX + "__".join(part.upper() for part in path)
        rows.append(
            SettingRow(variable=alias, default="unset", description=f"the same as `{target}`, which wins", secret=True)
        )
    return rows


def group_of(field: FieldInfo) -> type[BaseModel] | None:
    if get_origin(field.annotation) is not dict:
        return None
    value = get_args(field.annotation)[1]
    return value if isinstance(value, type) and issubclass(value, BaseModel) else None


def attributes_of(model: type[BaseModel]) -> dict[str, str]:
    """Name in the variable, in small letters -> attribute: they differ where the name is a word of Python."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


def _reference_of(model: type[BaseModel], prefix: str) -> Iterable[SettingRow]:
    for name, field in model.model_fields.items():
        group = group_of(field)
        if group is not None:
            yield from _reference_of(group, f"{prefix}{name.upper()}__{{N}}__")
            continue
        default = "required" if field.is_required() else _shown(field.default, plain=True)
        yield SettingRow(
            variable=prefix + (field.alias or name).upper(),
            default=default,
            description=field.description or "",
            secret=_holds_secret(field),
        )


def has_file_twin(path: tuple[str, ...]) -> bool:
    field = Settings.model_fields[path[0]]
    group = group_of(field)
    return _holds_secret(group.model_fields[attributes_of(group)[path[2]]] if group else field)


def _holds_secret(field: FieldInfo) -> bool:
    return "SecretStr" in repr(field.annotation) or field.json_schema_extra is FROM_FILE


def _shown(value: object, *, plain: bool = False) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value() if plain else "***"
    if value is None or value in ((), {}):
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_shown(part, plain=plain) for part in value)
    if isinstance(value, dict):
        return ",".join(f"{key}={_shown(part)}" for key, part in value.items())
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and "://" in value:
        return mask_url(value)
    return str(value)
