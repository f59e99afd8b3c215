"""`python -m tests.contract`: rewrites the snapshot, and tells what in it breaks clients of the one before."""

from __future__ import annotations

from app.logs import configure_logs
from tests.contract.document import SNAPSHOT, current_document, kept_document, render
from tests.contract.judge import breaks


def main() -> None:
    configure_logs(log_level="warning")
    new = current_document()
    for told in breaks(kept_document(), new) if SNAPSHOT.exists() else ():
        print(f"breaks clients: {told}")
    SNAPSHOT.write_text(render(new), encoding="utf-8")
    print(f"{SNAPSHOT.name} is the app's document again")


if __name__ == "__main__":
    main()
