"""Messages handed to Mailjet, each once: what it accepted is never sent again, what nobody knows is looked up first."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from hashlib import blake2b
from typing import Any

import orjson
import structlog
from pydantic import Field

from app.clock import from_micros, utc_now
from app.connector.ledger import Entry, Ledger, ids_known_before
from app.connector.problems import pointer_of, problem_of
from app.db import Database
from app.errors import FieldError
from app.mailjet import messages as mailjet
from app.mailjet.door import Door
from app.mailjet.errors import MailjetError
from app.mailjet.fields import Given
from app.mailjet.letters import NAMES, Letter, Receipt, Result, parse_result
from app.mailjet.messages import MailjetMessage

log = structlog.get_logger(__name__)

SENT = "messages.sent"
UNKNOWN = "messages.outcome_unknown"

MOST_MESSAGES = 50  # of one call
CLOCKS_DIFFER = timedelta(minutes=1)
# So long Mailjet may go on with a request whose sender is gone: twice as long as a sender waits for its answer.
SETTLE = timedelta(seconds=30)


class SendRequest(Given):
    """Up to 50 messages."""

    messages: list[Letter] = Field(min_length=1, max_length=MOST_MESSAGES, description="`Messages`")
    sandbox: bool = Field(False, description="check only, send nothing (`SandboxMode`)")

    @property
    def fingerprint(self) -> str:
        plain = self.model_dump(mode="json", by_alias=False)
        return blake2b(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS), digest_size=24).hexdigest()


class Sending:
    """`owner` must be unique among replicas and their restarts."""

    def __init__(
        self, database: Database, owner: str, now: Callable[[], datetime] = utc_now, *, settle: timedelta = SETTLE
    ) -> None:
        self._database = database
        self._owner = owner
        self._now = now
        self._settle_after = settle

    async def send(self, door: Door, request: SendRequest, key: str | None) -> list[Result]:
        """One result for each message, in order.

        Raises InFlight and KeyReused, and an AppError where Mailjet refuses the request as a whole: then nothing new
        was sent.
        """
        owner = f"{self._owner}:{uuid.uuid4().hex[:12]}"
        ledger = Ledger(self._database, door.connection, key, request.fingerprint, owner, self._now)
        fresh = [Entry(letter.custom_id or f"jethook-{uuid.uuid4().hex}") for letter in request.messages]
        async with ledger.held(fresh) as entries:
            if not all(entry.is_settled for entry in entries):
                await self._settle(door, request, ledger, entries)
            return [Result(**entry.result) for entry in entries if entry.result is not None]

    async def _settle(self, door: Door, request: SendRequest, ledger: Ledger, entries: list[Entry]) -> None:
        """Find what may be there already, then send the rest."""
        while any(entry.is_doubtful for entry in entries):
            found = await self._find_again(door, request, ledger, entries)
            wait = 0.0 if request.sandbox else self._wait_before_looking_again(entries, found=found)
            if wait <= 0:
                break
            await asyncio.sleep(wait)
        left = [number for number, entry in enumerate(entries) if not entry.is_settled]
        if left:
            await self._hand_over(door, request, ledger, entries, left)

    async def _find_again(self, door: Door, request: SendRequest, ledger: Ledger, entries: list[Entry]) -> bool:
        """Was anything found?"""
        doubtful = [entry for entry in entries if entry.is_doubtful]
        try:
            await self._look_up(door, request, entries)
        except MailjetError as error:
            raise problem_of(error) from None
        await ledger.save(entries)
        return any(entry.is_settled for entry in doubtful)

    def _wait_before_looking_again(self, entries: Sequence[Entry], *, found: bool) -> float:
        """Seconds; 0: what is not there now will not come by itself.

        Mailjet may go on with a request whose sender has died: while it shows none of its messages, it may not have
        begun; while more of them come to be seen, it may be in the middle, and those looked for first may be there by
        now.
        """
        handled = {entry.tried_at for entry in entries if entry.is_settled}
        tried = {entry.tried_at for entry in entries if entry.is_doubtful}
        if tried and found:
            return (self._settle_after / 15).total_seconds()
        newest = max((moment for moment in tried - handled if moment is not None), default=None)
        if newest is None:
            return 0.0
        return (from_micros(newest * 1_000_000) + self._settle_after - self._now()).total_seconds()

    async def _hand_over(
        self, door: Door, request: SendRequest, ledger: Ledger, entries: list[Entry], numbers: Sequence[int]
    ) -> None:
        for number in numbers:
            entries[number].tried_at = int(self._now().timestamp())
        await ledger.save(entries)
        letters = [request.messages[number].as_sent(entries[number].custom_id) for number in numbers]
        try:
            given = await mailjet.send_messages(door, letters, sandbox=request.sandbox)
        except MailjetError as error:
            if not error.ambiguous:
                for number in numbers:
                    entries[number].tried_at = None
                await ledger.save(entries)
                problem = problem_of(error, names=NAMES)
                problem.errors = tuple(_renumbered(fault, numbers) for fault in problem.errors)
                raise problem from None
            await self._after_doubt(door, request, entries, error)
        else:
            for place, number in enumerate(numbers):
                result = given[place] if place < len(given) else None
                entries[number].result = _result(result, entries[number].custom_id, number)
        await ledger.save(entries)
        counts = _counts(entries)
        log.info(SENT, connection=door.connection, messages=len(numbers), sandbox=request.sandbox, **counts)

    async def _after_doubt(self, door: Door, request: SendRequest, entries: list[Entry], error: MailjetError) -> None:
        log.warning(UNKNOWN, connection=door.connection, error=type(error).__name__)
        with contextlib.suppress(MailjetError):  # what is not known stays so, and is told as such
            await self._look_up(door, request, entries)
        for entry in entries:
            if entry.result is None:
                entry.result = Result(status="unknown", custom_id=entry.custom_id).model_dump()

    async def _look_up(self, door: Door, request: SendRequest, entries: Sequence[Entry]) -> None:
        """Settle those that Mailjet shows to be there. Raises MailjetError."""
        if request.sandbox:
            return  # nothing was sent
        found: dict[str, dict[str, list[MailjetMessage]]] = {}
        for letter, entry in zip(request.messages, entries, strict=True):
            if not entry.is_doubtful:
                continue
            if entry.custom_id not in found:
                found[entry.custom_id] = await self._find(door, letter, entry)
            if receipts := _claim(found[entry.custom_id], letter):
                told = Result(status="accepted", custom_id=entry.custom_id, recipients=receipts)
                entry.result = told.model_dump()

    async def _find(self, door: Door, letter: Letter, entry: Entry) -> dict[str, list[MailjetMessage]]:
        """Messages of this custom id by address in small letters, but those that were there before."""
        messages = await mailjet.find_by_custom_id(door, entry.custom_id)
        old: set[str] = set()
        if letter.custom_id is not None and entry.tried_at is not None:  # a caller's own need not be the only one
            before = from_micros(entry.tried_at * 1_000_000) - CLOCKS_DIFFER
            old = await self._database.run_read(lambda c: ids_known_before(c, entry.custom_id, before))
        by_address: dict[str, list[MailjetMessage]] = defaultdict(list)
        for message in messages:
            if message.id not in old:
                by_address[(message.email or "").lower()].append(message)
        return by_address


def _claim(found: dict[str, list[MailjetMessage]], letter: Letter) -> list[Receipt]:
    """The message's recipients, taken out of what was found; none where Mailjet shows none of them.

    One that is shown is enough: Mailjet takes a message for all its recipients or for none.
    """
    receipts: list[Receipt] = []
    shown = False
    for address in dict.fromkeys(letter.recipients):
        messages = found.get(address.lower())
        message = messages.pop(0) if messages else None
        shown = shown or message is not None
        receipts.append(
            Receipt(email=address, message_id=message and message.id, message_guid=message and message.message_guid)
        )
    return receipts if shown else []


def _renumbered(fault: FieldError, numbers: Sequence[int]) -> FieldError:
    """Mailjet counts the messages that it was handed, which are not all where some were settled before."""

    def ours(found: re.Match[str]) -> str:
        place = int(found[1])
        return f"/messages/{numbers[place] if place < len(numbers) else place}"

    return replace(fault, pointer=re.sub(r"\A/messages/([0-9]+)", ours, fault.pointer))


def _result(given: Any, custom_id: str, number: int) -> dict[str, Any]:
    return parse_result(given, custom_id, number, partial(pointer_of, names=NAMES)).model_dump()


def _counts(entries: Sequence[Entry]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for entry in entries:
        if entry.result is not None:
            counts[entry.result["status"]] += 1
    return dict(counts)
