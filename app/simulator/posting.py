"""One POST to a callback URL, as Mailjet makes it: Basic from the URL's userinfo, JSON, no redirects followed.

The user agent is the one seen on Mailjet's test calls (mettle/sendportal#263).
"""

import base64
import io
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp

USER_AGENT = "Go-http-client/2.0"
LARGE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Target:
    """A callback URL without its credentials, and the headers to post with; safe to print."""

    url: str
    headers: dict[str, str] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take the userinfo out of `url` and into an `Authorization` header.

        Raises ValueError, which never quotes the URL, when it is not http or https with a host.
        """
        fault = ValueError("a callback URL must start with http:// or https:// and name a host")
        try:
            parts = urlsplit(url)
        except ValueError:
            raise fault from None  # its text would quote the password
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise fault
        headers = {"content-type": "application/json", "user-agent": USER_AGENT}
        userinfo, at, host = parts.netloc.rpartition("@")
        if at:
            user, _, password = userinfo.partition(":")
            credentials = f"{unquote(user)}:{unquote(password)}".encode()
            headers["authorization"] = "Basic " + base64.b64encode(credentials).decode()
        return cls(urlunsplit(parts._replace(netloc=host, fragment="")), headers)


@dataclass(frozen=True, slots=True)
class PostResult:
    """`status` is None when no answer came back; then `failure` says why: timeout, connect or broken."""

    status: int | None
    failure: str | None = None

    @property
    def is_acknowledged(self) -> bool:
        """Exactly 200: whether Mailjet accepts another 2xx is not documented."""
        return self.status == 200


def make_session(concurrency: int, timeout_seconds: float) -> aiohttp.ClientSession:
    """A session for `post`; close it in the loop that made it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def post(session: aiohttp.ClientSession, target: Target, body: bytes) -> PostResult:
    """Post once and read the answer to its end; whatever the other side does is a value, not an exception."""
    # aiohttp warns of large bodies given as bytes, which it would write in one go.
    data = body if len(body) <= LARGE_BYTES else io.BytesIO(body)
    try:
        async with session.post(target.url, data=data, headers=target.headers, allow_redirects=False) as response:
            await response.read()
            return PostResult(response.status)
    except TimeoutError:
        return PostResult(None, "timeout")
    except aiohttp.ClientConnectorError:
        return PostResult(None, "connect")
    except (aiohttp.ClientError, OSError):
        return PostResult(None, "broken")
