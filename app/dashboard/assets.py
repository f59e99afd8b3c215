"""Style, scripts and pictures: read once, compressed once, named by their content so that browsers keep them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from app.errors import NotFound

FOLDER = Path(__file__).parent / "static"
PREFIX = "/dashboard/static/"
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    content: bytes
    compressed: bytes
    media_type: str
    digest: str


class Assets:
    """`url(name)` changes with the file; what is served under it may be kept for ever."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._assets: Mapping[str, Asset] = {
            path.relative_to(folder).as_posix(): _asset(path)
            for path in sorted(folder.rglob("*"))
            if path.suffix in TYPES
        }

    def url(self, name: str) -> str:
        return f"{PREFIX}{name}?v={self._assets[name].digest}"

    def answer(self, request: Request, name: str) -> Response:
        """Raises NotFound."""
        asset = self._assets.get(name)
        if asset is None:
            raise NotFound("there is no such file")
        headers = {
            "cache-control": "public, max-age=31536000, immutable",
            "x-content-type-options": "nosniff",
            "vary": "accept-encoding",
        }
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(asset.content, headers=headers, media_type=asset.media_type)
        return Response(asset.compressed, headers=headers | {"content-encoding": "gzip"}, media_type=asset.media_type)


@cache
def load_assets() -> Assets:
    return Assets()


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    digest = blake2b(content, digest_size=6).hexdigest()
    return Asset(content, gzip.compress(content, mtime=0), TYPES[path.suffix], digest)
