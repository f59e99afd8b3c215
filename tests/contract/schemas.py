"""What in a new JSON Schema breaks one who relies on the old one: who sends by it, or who reads by it. Pure.

A schema is a set of alternatives (`anyOf`, `oneOf`, a list of types), mostly one. Of a request each old alternative
must still be accepted; of an answer each new alternative must be one that readers know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

Schema = Mapping[str, Any]
Way = Literal["request", "answer"]

LOW = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
HIGH = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
EXACT = ("pattern", "format", "multipleOf")


class Schemas:
    """Two documents, in which references are looked up."""

    def __init__(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        self._old = old
        self._new = new
        self._under_way: list[tuple[Way, Any, Any]] = []  # schemas that hold themselves have an end

    def request(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        yield from self._judge("request", where, old, new)

    def answer(self, where: str, old: Schema, new: Schema) -> Iterator[str]:
        yield from self._judge("answer", where, old, new)

    def _judge(self, way: Way, where: str, old: Schema, new: Schema) -> Iterator[str]:
        key = (way, old.get("$ref", id(old)), new.get("$ref", id(new)))
        if key in self._under_way:
            return
        self._under_way.append(key)
        try:
            if way == "request" and "default" in old and old["default"] != new.get("default"):
                yield f"{where}: default {old['default']!r} became {new.get('default')!r}"
            yield from self._alternatives(
                way, where, list(alternatives(self._old, old)), list(alternatives(self._new, new))
            )
        finally:
            self._under_way.pop()

    def _alternatives(self, way: Way, where: str, old: list[Schema], new: list[Schema]) -> Iterator[str]:
        """Each of those that come (as requests did, as answers will) needs one that takes it."""
        for coming in old if way == "request" else new:
            pairs = [(coming, taking) for taking in new] if way == "request" else [(known, coming) for known in old]
            found = [list(self._single(way, where, *pair)) for pair in pairs]
            if not found or [] in found:
                continue
            alike = [
                told for told, pair in zip(found, pairs, strict=True) if pair[0].get("type") == pair[1].get("type")
            ]
            yield from min(alike or [[_refused(way, where, coming)]], key=len)

    def _single(self, way: Way, where: str, old: Schema, new: Schema) -> Iterator[str]:
        """Schemas without alternatives and references."""
        coming, taking = (old, new) if way == "request" else (new, old)
        if not _takes_type(coming.get("type"), taking.get("type")):
            yield f"{where}: {_name(old)} became {_name(new)}"
            return
        yield from _values(where, old, new, taking, coming)
        yield from _bounds(where, old, new, taking, coming)
        yield from self._properties(way, where, old, new)
        yield from self._inner(way, where, old, new)

    def _properties(self, way: Way, where: str, old: Schema, new: Schema) -> Iterator[str]:
        found = new.get("properties", {})
        for name, schema in old.get("properties", {}).items():
            if name not in found:
                yield f"{where}.{name}: removed"
            else:
                yield from self._judge(way, f"{where}.{name}", schema, found[name])
        before, now = set(old.get("required", ())), set(new.get("required", ()))
        if way == "request":
            yield from (f"{where}.{name}: now required" for name in sorted(now - before))
        else:
            gone = before - now
            yield from (f"{where}.{name}: not always there any more" for name in sorted(gone) if name in found)

    def _inner(self, way: Way, where: str, old: Schema, new: Schema) -> Iterator[str]:
        if "items" in old and "items" in new:
            yield from self._judge(way, f"{where}[]", old["items"], new["items"])
        before, now = old.get("additionalProperties", True), new.get("additionalProperties", True)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from self._judge(way, f"{where}.*", before, now)
        elif way == "request" and before is not False and now is False:
            yield f"{where}: other fields are refused now"


# --- single parts ----------------------------------------------------------------------------------------------------


def alternatives(document: Mapping[str, Any], schema: Schema) -> Iterator[Schema]:
    """Without references, `anyOf`, `oneOf`, `allOf` and lists of types; what stands beside them holds for each."""
    if "$ref" in schema:
        beside = {name: value for name, value in schema.items() if name != "$ref"}
        yield from alternatives(document, {**_looked_up(document, schema["$ref"]), **beside})
        return
    for name in ("anyOf", "oneOf"):
        if name in schema:
            beside = {key: value for key, value in schema.items() if key != name}
            for one in schema[name]:
                yield from alternatives(document, {**beside, **one})
            return
    if "allOf" in schema:
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            for found in alternatives(document, part):
                merged = _merged(merged, found)
        yield merged
        return
    kinds = schema.get("type")
    if isinstance(kinds, list):
        yield from ({**schema, "type": kind} for kind in kinds)
    else:
        yield schema


def _looked_up(document: Mapping[str, Any], reference: str) -> Schema:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _merged(one: Schema, other: Schema) -> dict[str, Any]:
    both = {**one, **other}
    if "properties" in one and "properties" in other:
        both["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        both["required"] = [*one["required"], *other["required"]]
    return both


def _takes_type(coming: str | None, taking: str | None) -> bool:
    return taking is None or coming == taking or (coming, taking) == ("integer", "number")


def _values(where: str, old: Schema, new: Schema, taking: Schema, coming: Schema) -> Iterator[str]:
    before, now, taken = _enum(old), _enum(new), _enum(taking)
    if before is not None and now is not None:
        # In an answer too: a renamed value is one that went and one that came.
        yield from (f"{where}: value {value!r} removed" for value in before if value not in now)
    elif taken is not None and _enum(coming) is None:
        told = "only certain values are taken now" if taking is new else "values are no longer a closed list"
        yield f"{where}: {told}"


def _enum(schema: Schema) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return None if values is None else list(values)


def _bounds(where: str, old: Schema, new: Schema, taking: Schema, coming: Schema) -> Iterator[str]:
    """The side that takes must not be narrower than what comes."""
    narrower: list[tuple[tuple[str, ...], Callable[[Any, Any], bool]]] = [
        (LOW, lambda taken, sent: taken is not None and (sent is None or sent < taken)),
        (HIGH, lambda taken, sent: taken is not None and (sent is None or sent > taken)),
        (EXACT, lambda taken, sent: taken is not None and taken != sent),
    ]
    for names, is_narrower in narrower:
        for name in names:
            if is_narrower(taking.get(name), coming.get(name)):
                yield f"{where}: {name} {old.get(name)!r} became {new.get(name)!r}"


def _refused(way: Way, where: str, coming: Schema) -> str:
    told = "is not taken any more" if way == "request" else "can come now, which old clients do not know"
    return f"{where}: {_name(coming)} {told}"


def _name(schema: Schema) -> str:
    named = schema.get("title") if schema.get("type") == "object" else None
    return str(named or schema.get("type", "any value"))
