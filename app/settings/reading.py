"""From the environment and `.env` to settings, or to all that does not fit, each by the variable's name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import ValidationError

from app.errors import SettingsFault
from app.settings.model import Settings
from app.settings.names import PREFIX, closest, name_faults, names_in
from app.settings.reference import ALIASES, attributes_of, group_of, has_file_twin, reference_rows
from app.settings.ways import address_faults, way_faults


def load_settings(environ: Mapping[str, str] | None = None, *, env_file: Path | None = Path(".env")) -> Settings:
    """Settings from the environment over the `.env` file.

    Raises SettingsFault with every fault: unknown variables (and the nearest known name), values that do not fit,
    unreadable `…_FILE` twins. No fault repeats a value, since a value may be a secret.
    """
    faults: list[str] = []
    tree: dict[str, Any] = {}
    variables: dict[tuple[str, ...], str] = {}  # place in the tree -> the variable that filled it
    merged = _merged(_dotenv(env_file, faults), os.environ if environ is None else environ)
    for name in _sinks_of_blank_urls(merged):
        tree.setdefault("sinks", {})[name] = {}  # so that it is missed, and not the whole sink gone without a word
    for path, value, variable in _assignments(merged, faults):
        if path in variables and variable.startswith("MJ_"):
            continue  # JETHOOK_CONNECTIONS__DEFAULT__… wins, whichever came first
        variables[path] = variable
        _put(tree, path, value)
    faults += way_faults(tree.get("sinks", {}))
    faults += address_faults(tree)
    try:
        settings = Settings(**tree)
    except ValidationError as error:
        found = [*faults, *_faults_of(error, variables), *name_faults(*names_in(tree))]
        raise SettingsFault(list(dict.fromkeys(found))) from None
    if faults:
        raise SettingsFault(faults)
    return settings


def _dotenv(env_file: Path | None, faults: list[str]) -> dict[str, str]:
    if env_file is None or not env_file.is_file():
        return {}
    try:
        return {key: value for key, value in dotenv_values(env_file).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{env_file}: cannot be read: {_reason(error)}")
        return {}


def _merged(from_file: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """What is ours of both, by names in capitals. The environment wins, also as a `_FILE` twin over the plain name."""
    above, below = _ours(environ), _ours(from_file)
    return {name: value for name, value in below.items() if _twin(name) not in above} | above


def _ours(environ: Mapping[str, str]) -> dict[str, str]:
    named = {name.upper(): value for name, value in environ.items()}
    return {
        name: value for name, value in named.items() if name.startswith(PREFIX) or name.removesuffix("_FILE") in ALIASES
    }


def _twin(name: str) -> str:
    return name.removesuffix("_FILE") if name.endswith("_FILE") else f"{name}_FILE"


def _assignments(environ: Mapping[str, str], faults: list[str]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(path in the settings tree, value, variable) of each variable; `_FILE` twins are read. Blank means not set."""
    for name, value in environ.items():
        path = _path_of(name)
        if path is not None:
            if value.strip():
                yield path, value, name
            continue
        path = _path_of(_twin(name)) if name.endswith("_FILE") else None
        if path is None or not has_file_twin(path):
            faults.append(_unknown(name))
        elif not value.strip():
            continue
        elif environ.get(_twin(name), "").strip():
            faults.append(f"{name}: {_twin(name)} is set too; set one of them")
        elif (text := _read_secret(name, value, faults)) is not None:
            yield path, text, name


def _sinks_of_blank_urls(environ: Mapping[str, str]) -> Iterator[str]:
    for variable, value in environ.items():
        path = _path_of(variable)
        if path is not None and path[0] == "sinks" and path[-1] == "url" and not value.strip():
            yield path[1]


def _path_of(name: str) -> tuple[str, ...] | None:
    """The place of a variable in the tree, None for a name that is no setting."""
    if name in ALIASES:
        return ALIASES[name]
    if not name.startswith(PREFIX):
        return None
    path = tuple(name.removeprefix(PREFIX).lower().split("__"))
    field = Settings.model_fields.get(path[0])
    if field is None:
        return None
    group = group_of(field)
    if group is None:
        return path if len(path) == 1 else None
    return path if len(path) == 3 and path[1] and path[2] in attributes_of(group) else None


def _put(tree: dict[str, Any], path: tuple[str, ...], value: str) -> None:
    node = tree
    for part in path[:-1]:
        node = node.setdefault(part, {})
    node[path[-1]] = value


def _read_secret(variable: str, file: str, faults: list[str]) -> str | None:
    """The text of the file without the line break at its end. The file's name is never told: where somebody put the
    secret itself there, it is the secret."""
    try:
        text = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        faults.append(f"{variable}: cannot read the file it names: {_reason(error)}")
        return None
    if not text.strip():
        faults.append(f"{variable}: the file it names is empty")
        return None
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return getattr(error, "strerror", None) or type(error).__name__


def _unknown(name: str) -> str:
    near = _nearest(name)
    return f"{name}: no such setting" + (f"; did you mean {near}?" if near else "")


def _nearest(name: str) -> str | None:
    """The known name most like this one."""
    parts = name.removeprefix(PREFIX).split("__")
    if len(parts) == 3:  # the name in the middle is the user's own: compare what is around it
        groups = {field: group for field, info in Settings.model_fields.items() if (group := group_of(info))}
        if found := closest(parts[0].lower(), list(groups)):
            last = closest(parts[2].lower(), list(attributes_of(groups[found])))
            return f"{PREFIX}{found.upper()}__{parts[1]}__{last.upper()}" if last else None
    # Without the prefix, which would make everything look alike.
    known = [row.variable.removeprefix(PREFIX) for row in reference_rows() if row.variable.startswith(PREFIX)]
    found = closest(name.removeprefix(PREFIX), known)
    return found and PREFIX + found


def _faults_of(error: ValidationError, variables: Mapping[tuple[str, ...], str]) -> Iterator[str]:
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        message = fault["msg"].removeprefix("Value error, ")
        names = [str(part) for part in fault["loc"] if not isinstance(part, int)]
        if not names:
            yield from message.split("\n")
            continue
        # A fault inside a union or a tuple ends with pydantic's own words: keep what is a variable.
        path = tuple(names[: 3 if group_of(Settings.model_fields[names[0]]) else 1])
        variable = variables.get(path, PREFIX + "__".join(name.upper() for name in path))
        for line in ["is required"] if fault["type"] == "missing" else message.split("\n"):
            yield f"{variable}: {line[:1].lower()}{line[1:]}"
