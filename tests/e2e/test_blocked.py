"""The operator's networks in the real service: what is denied is not reached, and says which setting to change."""

from __future__ import annotations

from pathlib import Path

from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.e2e.service import ServiceProcess, id_of, until

EVENT = {"event": "bounce", "time": 1_777_802_400, "MessageID": 19421777835146490}


def test_an_exception_is_reached_and_without_it_the_attempt_is_blocked(tmp_path: Path, sqlite_url: str) -> None:
    inner = SampleSink()
    with LocalServer(inner) as server:
        environment = {
            "JETHOOK_SINKS__INNER__URL": server.url.replace("127.0.0.1", "localhost"),
            "JETHOOK_SINK_DENY_CIDRS": "0.0.0.0/0, ::/0",
            "JETHOOK_SINK_ALLOW_CIDRS": "127.0.0.1",
        }
        with ServiceProcess(tmp_path, sqlite_url, environment) as service:
            service.post(EVENT)
            inner.wait_for(1)
        environment["JETHOOK_SINK_ALLOW_CIDRS"] = "192.0.2.0/24"
        with ServiceProcess(tmp_path, sqlite_url, environment) as service:
            event = EVENT | {"MessageID": 19421777835146491}
            service.post(event)
            path = f"/v1/deliveries/{id_of(event)}.inner"
            (attempt,) = until(lambda: service.get(path)["attempts"], "an attempt")
            value = 'jethook_delivery_attempts_total{outcome="blocked",sink="inner"}'
            until(lambda: service.metric(value) >= 1, "its metric")  # a slow machine tries again meanwhile

    assert (attempt["outcome"], attempt["status"]) == ("blocked", None)
    assert attempt["error"] == (
        "the sink's address is in JETHOOK_SINK_DENY_CIDRS, and JETHOOK_SINK_ALLOW_CIDRS makes no exception for it"
    )
    assert inner.total == 1


def test_the_service_does_not_start_with_a_sink_that_it_may_never_reach(tmp_path: Path, sqlite_url: str) -> None:
    service = ServiceProcess(
        tmp_path, sqlite_url, {"JETHOOK_SINKS__CRM__URL": "http://169.254.169.254/", "JETHOOK_SINK_DENY_CIDRS": "10/8"}
    )
    service.launch()
    try:
        assert service.wait() != 0
    finally:
        service.close()

    assert "JETHOOK_SINKS__CRM__URL: its address is never connected to" in service.logs
    assert "JETHOOK_SINK_DENY_CIDRS: entry 1 is no network" in service.logs
