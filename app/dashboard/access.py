"""Who may see a page and who may press a button. Cookies and headers end here."""

from __future__ import annotations

import hmac
import time
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request, Response

from app.clock import utc_now
from app.credentials import end_session, is_ended
from app.dashboard.forms import Form, read_form
from app.dashboard.sessions import LIFE, Session, Sessions
from app.dashboard.throttle import Throttle
from app.db import Database
from app.errors import Forbidden, Unauthorized

COOKIE = "jethook_session"
FOUND = "jethook.session"  # in the scope, for pages that tell of an error


class SignedOut(Unauthorized):
    """Nobody is signed in: a page sends to the sign-in, everything else answers 401."""

    def __init__(self) -> None:
        super().__init__("sign in first")


class TooManyGuesses(Unauthorized):
    """Of a page, so it needs no code of its own in the API."""

    status_code, title = 429, "Too many wrong keys"

    def __init__(self, wait_seconds: int) -> None:
        told = f"too many wrong keys from this address; try again in {wait_seconds} s"
        super().__init__(told, headers={"retry-after": str(wait_seconds)})


class Access:
    """The dependencies of pages: `viewer` for any key, `actor` for a form that a full key sends."""

    def __init__(self, sessions: Sessions, database: Database, public_url: str | None) -> None:
        self._sessions = sessions
        self._database = database
        self._public = urlsplit(public_url) if public_url else None
        self._throttle = Throttle()

    def find(self, request: Request) -> Session | None:
        session = self._sessions.read(request.cookies.get(COOKIE, ""), utc_now())
        if session is None:
            return None
        with self._database.reading() as connection:
            if is_ended(connection, session.id):
                return None
        request.scope[FOUND] = session
        return session

    def viewer(self, request: Request) -> Session:
        """Raises SignedOut."""
        session = self.find(request)
        if session is None:
            raise SignedOut
        return session

    def sender(self, request: Request, form: Annotated[Form, Depends(read_form)]) -> Session:
        """Whoever sends one of our forms. Raises SignedOut, Forbidden."""
        session = self.viewer(request)
        self.check_origin(request)
        if not hmac.compare_digest(form.text("csrf").encode(), session.csrf.encode()):
            raise Forbidden("this form is too old, or not ours: load the page again")
        return session

    def actor(self, request: Request, form: Annotated[Form, Depends(read_form)]) -> Session:
        """The same with a full key. Raises SignedOut, Forbidden."""
        session = self.sender(request, form)
        if not session.may_act:
            raise Forbidden("you are signed in with a key that may only read")
        return session

    def check_origin(self, request: Request) -> None:
        """Refuses what another site's page sent. Raises Forbidden."""
        site = request.headers.get("sec-fetch-site")
        origin = request.headers.get("origin")
        if site is not None:
            is_ours = site in ("same-origin", "none")
        else:
            is_ours = origin is None or urlsplit(origin).netloc in self._hosts(request)
        if not is_ours:
            raise Forbidden("this form came from another site")

    def sign_in(self, request: Request, api_key: str) -> str | None:
        """The cookie's value, None for a wrong key. Raises TooManyGuesses, for right keys too."""
        address = request.client.host if request.client else ""
        if wait_seconds := self._throttle.wait_seconds(address, time.monotonic()):
            raise TooManyGuesses(wait_seconds)
        cookie = self._sessions.sign_in(api_key, utc_now())
        if cookie is None:
            self._throttle.failed(address, time.monotonic())
        return cookie

    def redeem(self, token: str) -> str | None:
        """The cookie's value for a link; None where it was used before, or is none."""
        redeemed = self._sessions.redeem(token, utc_now())
        if redeemed is None:
            return None
        id, expires_at, cookie = redeemed
        is_first = self._database.write(lambda c: end_session(c, id, expires_at, utc_now()))
        return cookie if is_first else None

    def log_out(self, session: Session) -> None:
        """From here on the cookie opens nothing, on any replica."""
        self._database.write(lambda c: end_session(c, session.id, session.expires_at, utc_now()))

    def set_cookie(self, request: Request, response: Response, value: str) -> None:
        """An empty value takes it away."""
        options: dict[str, Any] = {"httponly": True, "samesite": "lax", "secure": self.is_secure(request), "path": "/"}
        if value:
            response.set_cookie(COOKIE, value, max_age=int(LIFE.total_seconds()), **options)
        else:
            response.delete_cookie(COOKIE, **options)

    def is_secure(self, request: Request) -> bool:
        """Did the browser come by TLS? A proxy says so, or the address is the public one and that is https."""
        told = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
        if request.url.scheme == "https" or told == "https":
            return True
        public = self._public
        return public is not None and public.scheme == "https" and request.headers.get("host") == public.netloc

    def _hosts(self, request: Request) -> set[str]:
        told = {request.headers.get("host", ""), request.headers.get("x-forwarded-host", "")}
        return (told | {self._public.netloc if self._public else ""}) - {""}
