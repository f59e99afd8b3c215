import orjson
import pytest

from app.simulator.mailjet import StandInMailjet
from app.simulator.outbox import Outbox, SenderCounts

URL = "http://a.example/hook"
BACKUP = "http://b.example/hook"


class Story:
    """An outbox over a stand-in, told the time by the test."""

    def __init__(self) -> None:
        self.mailjet = StandInMailjet()
        self.outbox = Outbox(
            lambda slot: self.mailjet.find_callback(None, slot[0], is_backup=slot[1]),
            lambda slot: self.mailjet.mark_dead(None, slot[0], is_backup=slot[1]),
            retry_seconds=30,
            group_seconds=1,
            failure_window_seconds=100,
        )

    def register(self, *types, url=URL, **options):
        for event_type in types:
            self.mailjet.put_callback(None, event_type, url, **options)

    def add(self, *types, now=0.0):
        for number, event_type in enumerate(types):
            self.outbox.add({"event": event_type, "n": number}, now)

    def post(self, now, *, ok=True):
        """Post what is due and answer it; returns (url, body) of each."""
        parcels = self.outbox.take_due(now)
        posts = [(parcel.url, orjson.loads(parcel.body)) for parcel in parcels]
        for parcel in parcels:
            self.outbox.record(parcel, is_acknowledged=ok, now=now)
        return posts

    def status(self, event_type):
        return self.mailjet.find_callback(None, event_type).status


@pytest.fixture
def story():
    return Story()


def test_version_1_gets_every_event_alone_and_at_once(story):
    story.register("open", "sent")
    story.add("open", "sent", "open")

    assert story.post(0) == [
        (URL, {"event": "open", "n": 0}),
        (URL, {"event": "sent", "n": 1}),
        (URL, {"event": "open", "n": 2}),
    ]
    assert story.outbox.counts() == SenderCounts(posted=3, acknowledged=3)


def test_version_2_gets_the_types_of_one_url_in_one_array(story):
    story.register("open", "sent", version=2)
    story.register("click", url=BACKUP, version=2)
    story.add("open", "click", "sent")

    assert story.post(0) == [
        (URL, [{"event": "open", "n": 0}, {"event": "sent", "n": 2}]),
        (BACKUP, [{"event": "click", "n": 1}]),
    ]


def test_version_2_is_posted_about_once_a_second(story):
    story.register("open", version=2)
    story.add("open", now=0)
    assert len(story.post(0)) == 1
    story.add("open", "open", now=0.2)

    assert story.outbox.next_at() == 1
    assert story.post(0.9) == []
    assert [len(body) for _, body in story.post(1)] == [2]
    assert story.post(5) == []
    assert story.outbox.next_at() is None
    story.add("open", now=5.5)
    assert len(story.post(5.5)) == 1


def test_an_event_nobody_registered_for_is_forgotten(story):
    story.register("open")
    story.add("sent")

    assert story.post(0) == []
    assert story.outbox.counts() == SenderCounts(unwanted=1)


def test_what_is_not_answered_with_200_comes_again_byte_for_byte(story):
    story.register("open", version=2)
    story.add("open", "open")
    (first,) = story.outbox.take_due(0)
    body = first.body
    story.outbox.record(first, is_acknowledged=False, now=1)

    assert story.outbox.next_at() == 31
    assert story.outbox.take_due(30.9) == []
    (second,) = story.outbox.take_due(31)
    assert second.body == body
    assert story.outbox.counts() == SenderCounts(posted=2, repeated=1, pending=2)
    story.outbox.record(second, is_acknowledged=True, now=31)
    assert story.outbox.counts() == SenderCounts(posted=2, repeated=1, acknowledged=1)


def test_a_callback_that_only_fails_is_dead_after_the_window(story):
    story.register("open")
    story.add("open")

    for now in (0, 30, 60, 90):
        story.post(now, ok=False)
        assert story.status("open") == "alive"
    story.post(120, ok=False)
    assert story.status("open") == "dead"
    assert story.post(150) == []
    assert story.outbox.counts() == SenderCounts(posted=5, repeated=4, given_up=1)


def test_a_success_opens_the_window_anew(story):
    story.register("open")
    story.add("open")
    story.post(0, ok=False)
    story.add("open", now=50)
    story.post(50)

    story.add("open", now=110)
    story.post(110, ok=False)
    assert story.status("open") == "alive"


def test_the_backup_takes_over_from_a_dead_primary(story):
    story.register("open")
    story.register("open", url=BACKUP, is_backup=True, version=2)
    story.add("open")
    story.post(0, ok=False)
    story.post(100, ok=False)

    assert story.status("open") == "dead"
    assert story.post(130) == [(BACKUP, {"event": "open", "n": 0})]
    story.add("open", now=131)
    assert story.post(131) == [(BACKUP, [{"event": "open", "n": 0}])]


def test_the_primary_is_used_again_once_it_is_revived(story):
    story.register("open", status="dead")
    story.register("open", url=BACKUP, is_backup=True)
    story.add("open")
    assert story.post(0)[0][0] == BACKUP
    story.register("open", url=URL + "?r=1")
    story.add("open", now=1)

    assert story.post(1)[0][0] == URL + "?r=1"


def test_a_repeat_follows_a_callback_to_its_new_url(story):
    story.register("open")
    story.add("open")
    story.post(0, ok=False)
    story.register("open", url=BACKUP)

    assert story.post(30) == [(BACKUP, {"event": "open", "n": 0})]


def test_a_late_failure_of_an_old_url_does_not_count_against_the_new_one(story):
    story.register("open")
    story.add("open")
    (parcel,) = story.outbox.take_due(0)
    story.register("open", url=BACKUP)
    story.outbox.record(parcel, is_acknowledged=False, now=500)
    story.post(530, ok=False)

    assert story.status("open") == "alive"
