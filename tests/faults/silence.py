"""The network between a service and its database forgets connections: packets vanish, and nobody says so.

That is what a firewall does that was restarted, or a database whose machine lost its power: new connections work, the
old ones never answer. Only the kernel's own time limits end them, so packets must really be dropped. It is played in a
network namespace of its own, where a rule touches nobody else.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import psutil

from tests.faults.outages import _told
from tests.faults.stage import Outcome, Skipped, Stage

ENTER = 'ip link set lo up && exec "$0" -m tests.faults --alone "$1"'
TAKING_SECONDS = 90.0


def network_silent(stage: Stage) -> None:
    """Every packet of the connections that are open now is dropped for good."""
    assert stage.server is not None
    service = stage.service().start()
    with stage.load(service) as (load,):
        stage.run_on(1)
        for port in _ports_of(service.pid, stage.server.port):
            _drop(port, stage.server.port)
        stage.fault_ended()
        stage.run_on(3)  # what was in flight is answered from its own memory
        stage.await_taking(load, TAKING_SECONDS)
    _told(stage, load)
    stage.settle(service)


def _ports_of(pid: int, server_port: int) -> list[int]:
    """Of the process's ends of its connections to that port."""
    connections = psutil.Process(pid).net_connections("tcp")
    return [one.laddr.port for one in connections if one.raddr and one.raddr.port == server_port]


def _drop(port: int, server_port: int) -> None:
    for source, target in ((port, server_port), (server_port, port)):
        rule = ["-p", "tcp", "--sport", str(source), "--dport", str(target), "-j", "DROP"]
        subprocess.run(["iptables", "-I", "INPUT", "-i", "lo", *rule], check=True)


def play_alone(fault: str) -> Outcome:
    """The fault in a process with a network of its own. Raises Skipped."""
    if not all(map(shutil.which, ("unshare", "ip", "iptables"))):
        raise Skipped("unshare, ip and iptables are needed")
    tried = subprocess.run(["unshare", "-n", "iptables", "-L", "-n"], capture_output=True, check=False)
    if tried.returncode:
        raise Skipped("a network namespace cannot be made here")
    command = ["unshare", "-n", "sh", "-c", ENTER, sys.executable, fault]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def to_line(outcome: Outcome) -> str:
    return json.dumps(asdict(outcome))
