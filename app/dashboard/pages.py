"""From values to an HTML answer: templates, the headers every page has, errors as pages, a sentence after an action.

The content of events is other people's text: Jinja2 escapes everything, and the Content-Security-Policy lets nothing
run or be loaded that is not a file of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import structlog
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.responses import RedirectResponse

from app import __version__
from app.clock import utc_now
from app.dashboard.access import FOUND, SignedOut
from app.dashboard.assets import load_assets
from app.dashboard.filters import FILTERS, address
from app.dashboard.sessions import Session
from app.db import is_outage
from app.errors import AppError, DatabaseFault, Invalid, Unavailable
from app.settings import EVENT_TYPES

log = structlog.get_logger(__name__)

SIGN_IN = "/dashboard/sign-in"
SAID = "jethook_said"
THEME = "jethook_theme"
THEMES = ("light", "dark")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # not less: a form's Origin would be null then
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@cache
def environment() -> Environment:
    """One for the process: templates are compiled once, however many apps are made."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    made.filters.update(FILTERS)
    made.globals.update(asset=load_assets().url, address=address, version=__version__, event_types=EVENT_TYPES)
    return made


class Pages:
    """Renders templates."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._environment = environment()

    def compile(self, names: Iterable[str] | None = None) -> None:
        """These templates, or all; each is compiled once in a process."""
        for name in names or self._environment.list_templates():
            self._environment.get_template(name)

    def fragment(self, template: str, **values: Any) -> str:
        """A piece of a page, escaped as pages are."""
        return self._environment.get_template(template).render(now=utc_now(), **values)

    def answer(
        self, request: Request, template: str, session: Session | None = None, *, status: int = 200, **values: Any
    ) -> Response:
        """A whole page. Shows, once, what `redirect` said."""
        said = request.cookies.get(SAID)
        kind, _, text = unquote(said).partition(":") if said else ("", "", "")
        html = self._environment.get_template(template).render(
            session=session, instance=self._instance, now=utc_now(), theme=_theme(request), path=request.url.path,
            said={"kind": "bad" if kind == "bad" else "ok", "text": text} if text else None, **values,
        )  # fmt: skip
        response = Response(html, status, HEADERS, media_type="text/html; charset=utf-8")
        if said:
            response.delete_cookie(SAID, path="/")
        return response

    def error(self, request: Request, error: AppError, session: Session | None = None) -> Response:
        page = self.answer(request, "error.html", session, status=error.status_code, error=error)
        page.headers.update(error.headers)
        return page


def redirect(url: str, say: str | None = None, *, kind: str = "ok") -> Response:
    """To a page of ours after a form was sent, with a sentence for it."""
    response = RedirectResponse(url, 303, HEADERS)
    if say:
        response.set_cookie(SAID, quote(f"{kind}:{say[:600]}"), max_age=60, httponly=True, samesite="lax", path="/")
    return response


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def page_route(pages: Pages) -> type[APIRoute]:
    """Routes whose errors are pages, and that send whoever is not signed in to the sign-in."""

    class PageRoute(APIRoute):
        def get_route_handler(self) -> Handler:
            plain = super().get_route_handler()

            async def handle(request: Request) -> Response:
                try:
                    return await plain(request)
                except SignedOut as error:
                    return _to_sign_in(request) or pages.error(request, error)
                except Exception as error:
                    told = _told(error)
                    if told is None:
                        raise
                    return pages.error(request, told, request.scope.get(FOUND))

            return handle

    return PageRoute


def _told(error: Exception) -> AppError | None:
    """What a page can say of it; None for a fault of ours, which the last handler logs."""
    if isinstance(error, AppError):
        return error
    if isinstance(error, RequestValidationError):
        return Invalid("the address has a part that does not fit")
    if isinstance(error, PoolTimeoutError | DatabaseFault) or is_outage(error):
        log.warning("dashboard.database_unavailable", error=type(error).__name__)
        return Unavailable("the database does not answer")
    return None


def _to_sign_in(request: Request) -> Response | None:
    """None where a redirect would be taken for the answer itself."""
    if "text/event-stream" in request.headers.get("accept", ""):
        return None
    back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    url = address(SIGN_IN, next=back if request.method == "GET" and back != "/" else None)
    if request.headers.get("hx-request") == "true":
        return Response(status_code=204, headers=HEADERS | {"hx-redirect": url})
    return redirect(url)


def _theme(request: Request) -> str | None:
    chosen = request.cookies.get(THEME)
    return chosen if chosen in THEMES else None


def safe_next(text: str) -> str:
    """A path of ours to go back to; anything else leads home. `//host` and `/\\host` are other people's sites."""
    is_path = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    is_ours = text == "/" or text.startswith(("/?", "/dashboard/"))
    return text if is_path and is_ours and not text.startswith(SIGN_IN) else "/"
