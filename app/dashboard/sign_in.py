"""Signing in with an API key or a link, and logging out."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.dashboard.desk import Desk
from app.dashboard.forms import Form, read_form
from app.dashboard.pages import SIGN_IN, redirect, safe_next
from app.dashboard.sessions import Session

WRONG = "That is none of this installation's API keys."
USED = "That link was used before, or is too old. Sign in with an API key."


def add_routes(router: APIRouter, desk: Desk) -> None:
    pages, access = desk.pages, desk.access

    @router.get(SIGN_IN)
    def ask_for_key(request: Request, next: str = "/", link: str | None = None) -> Response:
        if link is not None:
            return follow(request, link)
        if access.find(request) is not None:
            return redirect(safe_next(next))
        return pages.answer(request, "sign_in.html", next=safe_next(next), fault=None)

    def follow(request: Request, link: str) -> Response:
        cookie = access.redeem(link)
        if cookie is None:
            return pages.answer(request, "sign_in.html", status=401, next="/", fault=USED)
        return opened(request, cookie, "/")

    @router.post(SIGN_IN)
    def sign_in(request: Request, form: Annotated[Form, Depends(read_form)]) -> Response:
        access.check_origin(request)
        back = safe_next(form.text("next") or "/")
        cookie = access.sign_in(request, form.text("key"))
        if cookie is None:
            return pages.answer(request, "sign_in.html", status=401, next=back, fault=WRONG)
        return opened(request, cookie, back)

    def opened(request: Request, cookie: str, back: str) -> Response:
        response = redirect(back)
        access.set_cookie(request, response, cookie)
        return response

    @router.post("/dashboard/log-out")
    def log_out(request: Request, session: Annotated[Session, Depends(access.sender)]) -> Response:
        access.log_out(session)
        response = redirect(SIGN_IN)
        access.set_cookie(request, response, "")
        return response
