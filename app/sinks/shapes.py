"""A sink as REST shows it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.models import AttemptOutcome


class Sink(BaseModel):
    """A downstream receiver and how it is doing."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "crm", "url": "https://crm.example.com/mail-events", "state": "active", "paused_reason": None,
                "breaker": "closed", "webhooks": ["orders"], "events": ["bounce", "spam"], "envelope": "mailjet",
                "batch_size": 1, "backlog": 0, "oldest_overdue_seconds": 0.0, "dead": 0,
                "last_success_at": "2026-05-03T10:00:01.345678Z", "last_error": None,
            }
        }
    )  # fmt: skip

    name: str
    url: str | None = Field(description="credentials masked; null for a removed sink")
    state: Literal["active", "paused", "removed"] = Field(
        description="`removed`: not configured any more; its deliveries wait until it comes back or they are cancelled"
    )
    paused_reason: str | None
    breaker: Literal["closed", "open", "half_open"] = Field(description="as this replica sees it")
    webhooks: list[str]
    events: list[str]
    envelope: str | None
    batch_size: int
    backlog: int = Field(description="deliveries not settled yet")
    oldest_overdue_seconds: float
    dead: int
    last_success_at: str | None
    last_error: str | None


class SinkList(BaseModel):
    data: list[Sink]
    next_cursor: None = None
    has_more: Literal[False] = False


class TestResult(BaseModel):
    """One try with an event that is not real; nothing is stored."""

    outcome: AttemptOutcome
    status: int | None
    error: str | None
    duration_ms: float
    response_excerpt: str | None
