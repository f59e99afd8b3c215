from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.contract.document import COMMAND, SNAPSHOT, current_document, kept_document, render
from tests.contract.judge import METHODS, breaks


@pytest.fixture(scope="module")
def current() -> dict[str, Any]:
    return current_document()


def test_clients_of_the_kept_document_go_on_working(current: dict[str, Any]) -> None:
    told = breaks(kept_document(), current)

    assert not told, f"{len(told)} changes break clients; if that is meant, run {COMMAND}:\n" + "\n".join(told)


def test_the_kept_document_is_the_one_of_the_app(current: dict[str, Any]) -> None:
    if render(current) != SNAPSHOT.read_text(encoding="utf-8"):
        pytest.fail(f"the app's OpenAPI is not that of {SNAPSHOT.name} any more: run {COMMAND} and commit the change")


def test_operations_have_names_of_their_own_for_generated_clients(current: dict[str, Any]) -> None:
    operations = [path[method] for path in current["paths"].values() for method in METHODS if method in path]
    names = Counter(operation["operationId"] for operation in operations)

    assert [name for name, times in names.items() if times > 1] == []
    assert all(name.isidentifier() and "_v1_" not in name for name in names)
