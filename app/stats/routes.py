"""`GET /v1/stats` and the ready tables under it."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Response

from app.clock import rfc3339, utc_now
from app.db import Database
from app.http import PROBLEM_RESPONSES, ApiKeys
from app.stats.asking import MOST_READ, Question, StatsQuery, TableQuery, question_of, table_question
from app.stats.beside import Beside
from app.stats.memory import Memory
from app.stats.queries import MOST_ROWS
from app.stats.scale import EXACT, EXACT_LONG
from app.stats.shapes import StatsAnswer, StatsTable
from app.stats.telling import tell
from app.views import dump

RATES = (
    " Rates are null where they would divide by nothing, or where the grouping or a filter parts what they compare"
    " (`type`, `reason`, `outcome`, `permanent`, `automated`). `delivery` is `sent` (the receiving server took the"
    " message) of all attempts that ended: `sent`, `bounce` and `blocked`, without deferrals. `bounce` is `bounce` of"
    " the same. `open`, `click`, `complaint` (`spam`) and `unsubscribe` (`unsub`) are of `sent`. They compare events of"
    " the row's time, not the fate of the messages sent in it: a message that is opened twice counts twice, and a"
    " rate can be above 1. Machines' opens and clicks are in `counts`, told in `automated`, and left out of rates."
)
TIMES = (
    " An event counts in the hour or day (UTC) in which it happened, however late it came, and as soon as its post was"
    " answered. Where more is waiting to be counted than an answer adds up, `complete` is false and `as_of` tells up to"
    " when it is. Test events count only with `test=true`, operator events only by their type or webhook."
    " Events deleted for their age stay counted; those of an erased person do not."
)
STATS = (
    "Counts, unique recipients and messages, and rates, by hour or day and by the groups asked for. Rows without events"
    f" are left out.{TIMES}{RATES} `unique` tells different addresses and message ids; it is exact up to {EXACT} events"
    f" of a day, and {EXACT_LONG} of a longer time that holds what was found, and beyond counted from a sample of"
    " recipients: then `unique_exact` is false and `unique_sample` the share that was looked at."
    " Filters by `email`, `message_id`, `message_guid` or `custom_id` are answered from the stored events themselves"
    f" (`source` is `events`), up to {MOST_READ} of them; by `contact_id`, `list_id` or the time received only together"
    f" with one of these or a campaign. What would take too long, or more than {MOST_ROWS} rows, is a 422 that says so."
)


def build_router(database: Database, keys: ApiKeys) -> APIRouter:
    router = APIRouter(prefix="/v1/stats", responses=PROBLEM_RESPONSES)
    memory, beside = Memory(), Beside(database)
    options: dict[str, Any] = {"tags": ["stats"], "dependencies": [Depends(keys.reader)]}

    @router.get("", summary="Count events", description=STATS, responses={200: {"model": StatsAnswer}}, **options)
    def get_stats(query: Annotated[StatsQuery, Query()]) -> Response:
        return _answer(database, (memory, beside), question_of(query), {"interval": query.interval})

    @router.get(
        "/domains",
        summary="Recipients' domains",
        description=f"What happened by the domain of the recipient, the most events first.{TIMES}{RATES}",
        responses={200: {"model": StatsTable}},
        **options,
    )
    def get_domains(query: Annotated[TableQuery, Query()]) -> Response:
        return _answer(database, (memory, beside), table_question(query, ("email_domain",)), {})

    @router.get(
        "/campaigns",
        summary="Campaigns",
        description="What happened by campaign, Mailjet's `campaign_id` and the sender's `custom_campaign`, the most"
        f" events first; what belongs to none is left out.{TIMES}{RATES}",
        responses={200: {"model": StatsTable}},
        **options,
    )
    def get_campaigns(query: Annotated[TableQuery, Query()]) -> Response:
        return _answer(database, (memory, beside), table_question(query, ("campaign_id", "custom_campaign")), {})

    return router


def _answer(database: Database, aids: tuple[Memory, Beside], question: Question, asked: dict[str, Any]) -> Response:
    now = utc_now()
    with database.reading() as connection:
        told = tell(connection, question, *aids)
    answer = {
        "data": orjson.Fragment(told.data),
        **asked,
        "group_by": list(question.group_by),
        "source": "events" if told.from_events else "counts",
        "complete": told.as_of is None,
        "as_of": rfc3339(told.as_of or now),
        "unique_exact": told.sample == 1,
        "unique_sample": told.sample,
    }
    return Response(dump(answer), media_type="application/json")
