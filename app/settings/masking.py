"""A URL as it may be shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def mask_url(url: str) -> str:
    """The URL without its password and without the values of its query, which may hold tokens.

    A user without a password is masked as well: that is how a token is often given.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    if "://" not in url:
        return "(not a URL)" if "@" in url or "?" in url else url
    credentials, at, host = parts.netloc.rpartition("@")
    user, colon, _ = credentials.partition(":")
    shown = (f"{user}:***" if colon else "***") + at if at else ""
    query = "&".join(re.sub(r"(=|^[^=]*$).*", lambda m: "=***" if m[1] == "=" else "***", part)
                     for part in parts.query.split("&"))  # fmt: skip
    # Put together by hand: `geturl` drops slashes of `sqlite:////data/x.db`.
    return (
        f"{parts.scheme}://{shown}{host}{parts.path}"
        + (f"?{query}" if parts.query else "")
        + ("#***" if parts.fragment else "")
    )
