"""The request of a parcel: its body and its headers, as the sink's settings say. Pure but for the test event's id."""

from __future__ import annotations

import secrets
from functools import lru_cache

import orjson

from app import __version__
from app.delivery.batching import Parcel
from app.delivery.envelope import batch_body_of, body_of
from app.delivery.signing import Signer
from app.dispatch.service import Job
from app.settings import SinkSettings
from app.views import EVENT_COLUMNS

USER_AGENT = f"jethook/{__version__}"


class RequestMaker:
    """Makes the requests of one sink."""

    def __init__(self, sink: SinkSettings) -> None:
        self._envelope = sink.envelope
        self._sends_batches = sink.batch_size > 1
        self._signer = Signer.from_secrets([secret.get_secret_value() for secret in sink.secrets])

    def make(self, parcel: Parcel, at: int) -> tuple[bytes, dict[str, str]]:
        """(body, headers) of an attempt that starts at `at`, microseconds."""
        body, content_type = self._body(parcel)
        return body, self._headers(parcel, at, body, content_type)

    def _body(self, parcel: Parcel) -> tuple[bytes, str]:
        if parcel.batch_id is None:
            return body_of(parcel.jobs[0], self._envelope)
        return batch_body_of(parcel.jobs, self._envelope)

    def _headers(self, parcel: Parcel, at: int, body: bytes, content_type: str) -> dict[str, str]:
        timestamp = at // 1_000_000
        headers = {
            "content-type": content_type,
            "user-agent": USER_AGENT,
            "webhook-id": parcel.webhook_id,
            "webhook-timestamp": str(timestamp),
            "idempotency-key": parcel.webhook_id,
            "x-jethook-attempt": str(parcel.attempt_count + 1),
        }
        if parcel.batch_id is None:
            headers["x-jethook-webhook"] = parcel.jobs[0].webhook
            headers["x-jethook-event"] = _header_text(parcel.jobs[0].type)
        else:
            headers["x-jethook-batch"] = str(len(parcel.jobs))
        if self._signer.keys:
            headers["webhook-signature"] = self._signer.header(parcel.webhook_id, timestamp, body)
        if any(job.replay for job in parcel.jobs):
            headers["x-jethook-replay"] = "true"
        return headers

    def test_parcel(self, sink: str, now: int) -> Parcel:
        """A test event as Mailjet's web interface makes them; nothing stored knows of it."""
        raw = orjson.dumps({"event": "sent", "time": now // 1_000_000, "MessageID": 0, "email": ""}).decode()
        values = dict.fromkeys(EVENT_COLUMNS) | {
            "id": f"test-{secrets.token_hex(8)}", "webhook": "test", "connection": "test", "type": "sent",
            "outcome": "delivered", "occurred_at": now, "received_at": now, "test": True,
            "raw": raw,
        }  # fmt: skip
        job = Job(str(values["id"]), sink, "test", "sent", tuple(values.values()))
        return Parcel([job], job.event_id if self._sends_batches else None)


@lru_cache(maxsize=256)
def _header_text(text: str) -> str:
    """An unknown event type is the sender's own word; a header carries visible ASCII only."""
    return "".join(c if " " < c < "\x7f" else "?" for c in text[:100])
