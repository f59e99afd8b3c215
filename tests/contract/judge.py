"""What in a new OpenAPI document breaks a client written for the old one. Pure.

Written by hand: the judges that are kept up are programs in Go, and those for Python are months old.

A request may be as it always was: nothing of it may be taken away, narrowed or asked for in addition. An answer may
hold more, never less or something else. New paths, optional parameters, fields of answers and values of an enumeration
in an answer break nobody: the contract says that fields may be added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.contract.schemas import Schemas

Document = Mapping[str, Any]
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


def breaks(old: Document, new: Document) -> list[str]:
    """A sentence for each break, in the order of the paths; none: every old client goes on working."""
    return list(_paths(Documents(old, new)))


@dataclass(frozen=True, slots=True)
class Documents:
    old: Document
    new: Document

    @property
    def schemas(self) -> Schemas:
        return Schemas(self.old, self.new)


def _paths(documents: Documents) -> Iterator[str]:
    new_paths = documents.new.get("paths", {})
    for path, old in sorted(documents.old.get("paths", {}).items()):
        for method in METHODS:
            if method not in old:
                continue
            name = f"{method.upper()} {path}"
            if method not in new_paths.get(path, {}):
                yield f"{name}: removed"
            else:
                yield from _operation(documents, name, old, new_paths[path], method)


def _operation(documents: Documents, name: str, old_path: Any, new_path: Any, method: str) -> Iterator[str]:
    old, new = old_path[method], new_path[method]
    if old.get("operationId") != new.get("operationId"):
        yield f"{name}: operationId {old.get('operationId')} became {new.get('operationId')}; generated clients call it"
    yield from _security(documents, name, old, new)
    yield from _parameters(documents, name, _parameters_of(old_path, old), _parameters_of(new_path, new))
    yield from _body(documents, name, old.get("requestBody"), new.get("requestBody"))
    for status, answer in sorted(old.get("responses", {}).items()):
        where = f"{name} answer {status}"
        if status not in new.get("responses", {}):
            yield f"{where}: removed"
        else:
            yield from _answer(documents, where, answer, new["responses"][status])


def _security(documents: Documents, name: str, old: Any, new: Any) -> Iterator[str]:
    """Each way to be let in must still be one."""
    ways = [
        [set(way) for way in operation.get("security", document.get("security", []))] or [set()]
        for document, operation in ((documents.old, old), (documents.new, new))
    ]
    for way in ways[0]:
        if not any(other <= way for other in ways[1]):
            yield f"{name}: {' with '.join(sorted(way)) or 'no credentials'} is not enough any more"


# --- requests --------------------------------------------------------------------------------------------------------


def _parameters_of(path: Any, operation: Any) -> dict[tuple[str, str], Any]:
    every = [*path.get("parameters", ()), *operation.get("parameters", ())]
    return {(parameter["in"], parameter["name"]): parameter for parameter in every}


def _parameters(documents: Documents, name: str, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Iterator[str]:
    for key, parameter in old.items():
        where = f"{name} {key[0]} {key[1]}"
        if key not in new:
            yield f"{where}: removed"
            continue
        if new[key].get("required") and not parameter.get("required"):
            yield f"{where}: now required"
        for how in ("style", "explode"):
            if parameter.get(how) != new[key].get(how):
                yield f"{where}: {how} changed"
        yield from documents.schemas.request(where, parameter.get("schema", {}), new[key].get("schema", {}))
    for key, parameter in new.items():
        if key not in old and parameter.get("required"):
            yield f"{name} {key[0]} {key[1]}: new and required"


def _body(documents: Documents, name: str, old: Any, new: Any) -> Iterator[str]:
    where = f"{name} body"
    if old is None or new is None:
        if old is not None:
            yield f"{where}: removed"
        elif new is not None and new.get("required"):
            yield f"{where}: new and required"
        return
    if new.get("required") and not old.get("required"):
        yield f"{where}: now required"
    for kind, content in old.get("content", {}).items():
        if kind not in new.get("content", {}):
            yield f"{where}: {kind} removed"
        else:
            found = new["content"][kind]
            yield from documents.schemas.request(where, content.get("schema", {}), found.get("schema", {}))


# --- answers ---------------------------------------------------------------------------------------------------------


def _answer(documents: Documents, where: str, old: Any, new: Any) -> Iterator[str]:
    for header in old.get("headers", {}):
        if header not in new.get("headers", {}):
            yield f"{where} header {header}: removed"
    for kind, content in old.get("content", {}).items():
        if kind not in new.get("content", {}):
            yield f"{where}: {kind} removed"
        else:
            found = new["content"][kind]
            yield from documents.schemas.answer(where, content.get("schema", {}), found.get("schema", {}))
