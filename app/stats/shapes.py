"""The OpenAPI models of statistics."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AutomatedCounts(BaseModel):
    """How many of the counts were machines'."""

    open: int
    click: int


class UniqueCounts(BaseModel):
    """How many different ones the events are about."""

    recipients: int = Field(description="different addresses")
    messages: int = Field(description="different message ids")


class DeferredCounts(BaseModel):
    """How many of the counts are deferrals (greylisting), after which Mailjet tries again; no rate knows them."""

    bounce: int
    blocked: int


class Rates(BaseModel):
    """Of events in the row; null where it cannot be told."""

    delivery: float | None = Field(description="sent / (sent + bounce + blocked), without deferrals")
    bounce: float | None = Field(description="bounce / (sent + bounce + blocked), without deferrals")
    open: float | None = Field(description="opens by people / sent")
    click: float | None = Field(description="clicks by people / sent")
    complaint: float | None = Field(description="spam / sent")
    unsubscribe: float | None = Field(description="unsub / sent")


class StatsTableRow(BaseModel):
    """What happened in one group."""

    group: dict[str, str | None] = Field(description="the grouped fields; null: events without a value")
    counts: dict[str, int] = Field(description="events by Mailjet's word, machines' included")
    automated: AutomatedCounts
    deferred: DeferredCounts
    unique: UniqueCounts
    rates: Rates


class StatsRow(StatsTableRow):
    """What happened in one group and hour or day."""

    start: str = Field(description="where the hour or day begins", json_schema_extra={"format": "date-time"})


class _About(BaseModel):
    group_by: list[str]
    source: Literal["counts", "events"]
    complete: bool = Field(description="everything received so far is in")
    as_of: str = Field(description="everything received up to then is in", json_schema_extra={"format": "date-time"})
    unique_exact: bool
    unique_sample: float = Field(description="the share of recipients that `unique` was counted from; 1: all")


class StatsAnswer(_About):
    """Statistics by hour or day."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "data": [
                    {
                        "start": "2026-05-03T00:00:00Z",
                        "group": {"webhook": "orders"},
                        "counts": {"bounce": 2, "click": 11, "open": 61, "sent": 98},
                        "automated": {"open": 12, "click": 0},
                        "deferred": {"bounce": 0, "blocked": 0},
                        "unique": {"recipients": 97, "messages": 100},
                        "rates": {
                            "delivery": 0.98,
                            "bounce": 0.02,
                            "open": 0.5,
                            "click": 0.112245,
                            "complaint": 0.0,
                            "unsubscribe": 0.0,
                        },
                    }
                ],
                "interval": "day",
                "group_by": ["webhook"],
                "source": "counts",
                "complete": True,
                "as_of": "2026-05-04T08:00:00.123456Z",
                "unique_exact": True,
                "unique_sample": 1.0,
            }
        }
    )

    data: list[StatsRow]
    interval: Literal["hour", "day"]


class StatsTable(_About):
    """Statistics of the largest groups."""

    data: list[StatsTableRow]
