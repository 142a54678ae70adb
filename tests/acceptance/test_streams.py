"""Events through HAProxy, over replicas that die and are deployed anew."""

import csv
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
import pytest

from dreamforge.api.schemas import StreamEvent
from dreamforge.client import Client
from tests.relay import Relay
from tests.running_stack import RunningStack, lives, wait_for
from tests.web import web

pytestmark = pytest.mark.timeout(500)

CUTS = 50


def _lines(stack: RunningStack, job_id: str) -> list[dict[str, Any]]:
    return stack.events(stack.get(f"/v1/jobs/{job_id}").json())


def _haproxy(stack: RunningStack, command: str) -> str:
    """What HAProxy answers on its admin socket."""
    (path,) = stack.ray_folder.glob("h/*/admin.sock")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(f"{command}\n".encode())
        with connection.makefile() as answer:
            return answer.read()


def _replica_of_the_newest_stream(stack: RunningStack) -> psutil.Process:
    """The replica that answers whoever has come last."""
    sessions = _haproxy(stack, "show sess")
    found = re.findall(r" fe=http_frontend be=(\S+) srv=(\S+) .* age=(\d+)s ", sessions)
    assert found, sessions
    *server, _ = min(found, key=lambda session: int(session[2]))
    _, table = _haproxy(stack, "show servers state").split("# ", 1)
    servers = csv.DictReader(table.splitlines(), delimiter=" ")
    (port,) = {int(row["srv_port"]) for row in servers if [row["be_name"], row["srv_name"]] == server}
    (replica,) = (process for process in stack.replicas("api:Api") if port in _ports(process))
    return replica


def _ports(process: psutil.Process) -> set[int]:
    """On which it listens."""
    connections = process.net_connections("tcp")
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def test_every_route_speaks_http(stack: RunningStack) -> None:
    job = stack.run(count=2, params={"prompt": "a fox", "seed": 3})
    links = job["links"]
    progress = stack.get(links["progress"]).json()
    assert (progress["status"], progress["fraction"], progress["items_done"], progress["stage"]) == (
        "succeeded", 1.0, 2, None,
    )  # fmt: skip
    artifacts = {artifact["item_index"]: artifact["id"] for artifact in stack.artifacts(job)}
    assert [(item["seed"], item["artifact_id"]) for item in progress["items"]] == [(3, artifacts[0]), (4, artifacts[1])]
    with web.stream("GET", stack.base_url + links["stream"], timeout=60) as response:
        headers = response.headers
        text = response.read().decode()
    assert headers["Content-Type"].startswith("text/event-stream")
    assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
    assert headers["X-Request-Id"]
    ids = [int(seq) for seq in re.findall(r"^id: (\d+)$", text, re.MULTILINE)]
    assert ids == list(range(1, progress["last_seq"] + 1))
    told = [json.loads(data)["progress"] for data in re.findall(r"^data: (.*)$", text, re.MULTILINE)]
    for number in ("fraction", "items_done"):
        assert [one[number] for one in told] == sorted(one[number] for one in told)
    assert told[-1] == {"fraction": 1.0, "items_done": 2, "items_total": 2}
    last = {"Last-Event-ID": str(ids[-1])}
    assert web.get(stack.base_url + links["stream"], headers=last).status_code == 204
    assert web.get(stack.base_url + links["stream"], headers={"Last-Event-ID": "banana"}).status_code == 400
    followed = stack.get(f"{links['logs']}?follow=true&level=info")
    assert followed.text == stack.get(f"{links['logs']}?level=info").text


def test_the_commands_follow_a_job(stack: RunningStack) -> None:
    job_id = stack.post(count=2, params={"prompt": "a fox"}).json()["id"]
    watching = stack.spawn("jobs", "watch", job_id, "--json")
    logging = stack.spawn("jobs", "logs", job_id, "-f", "--json")
    (watched, _), (logged, _) = watching.communicate(timeout=120), logging.communicate(timeout=120)
    assert (watching.returncode, logging.returncode) == (0, 0)
    lines = _lines(stack, job_id)
    assert [json.loads(line) for line in logged.splitlines()] == lines
    assert [json.loads(line)["seq"] for line in watched.splitlines()] == [line["seq"] for line in lines]
    result = subprocess.run(
        [sys.executable, "-m", "dreamforge.cli.main", "jobs", "watch", job_id],
        env=stack.environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "succeeded, 2 of 2 images" in result.stderr
    assert stack.command("jobs", "watch", "no-such-job").returncode == 1


def test_a_reader_that_is_cut_off_fifty_times_has_every_event_once(stack: RunningStack) -> None:
    """In one batch job, over the death of the replica that it reads from and a new deployment of all of them."""
    with Relay(target=("127.0.0.1", stack.ports["PORT"])) as relay, Client(stack.base_url) as client:
        job_id = str(client.submit("a long one", count=100, params={"steps": 50, "seed": 0}).id)
        torn = _Reader(f"http://127.0.0.1:{relay.port}", job_id)
        steady = _Reader(stack.base_url, job_id)
        _cut_off(relay, torn, until=CUTS // 3)
        source = torn.heard_on(relay)
        _replica_of_the_newest_stream(stack).kill()
        wait_for(lambda: source not in relay.sources, what="the connection's end with its replica")
        _cut_off(relay, torn, until=CUTS * 2 // 3)
        former = stack.replicas("api:Api")
        stack.deploy_again(api={"max_ongoing_requests": 3999})
        _cut_off(relay, torn, until=CUTS)
        wait_for(lambda: not any(lives(replica) for replica in former), what="the end of the former replicas")
        torn.heard_on(relay)
        assert relay.cut_off == CUTS
        assert client.get(job_id).status == "running", "all of it happened during the job"
        # The streams were told that their replica was leaving: they did not hold it up until it was killed.
        wait_for(lambda: "the replica is leaving" in stack.command("logs", "api", "-n", "5000").stdout, what="the word")
        client.cancel(job_id)
        client.wait(job_id, timeout=90)
        lines = _lines(stack, job_id)
        for reader in (torn, steady):
            reader.join(90)
            assert [event.seq for event in reader.events] == list(range(1, len(lines) + 1))
            assert [event.code for event in reader.events] == [line["code"] for line in lines]
    wait_for(lambda: len(stack.replicas("api:Api")) == 2, what="two replicas")


def _cut_off(relay: Relay, reader: "_Reader", *, until: int) -> None:
    """Cut the reader off again and again, each time in the middle of a stream, until it was so often."""
    while relay.cut_off < until:
        source = reader.heard_on(relay)
        # Anywhere between two events.
        time.sleep(random.uniform(0, 0.2))  # noqa: S311 - no secret
        with relay.refusing():
            pass
        wait_for(lambda source=source: source not in relay.sources, what="the connection's end")


class _Reader(threading.Thread):
    def __init__(self, url: str, job_id: str) -> None:
        super().__init__()
        self._url = url
        self._job_id = job_id
        self.events: list[StreamEvent] = []
        self.start()

    def heard_on(self, relay: Relay) -> int:
        """The port from which the relay speaks for it, once its connection there has brought something new."""
        before: dict[int, int] = {}

        def is_heard() -> bool:
            before.update({source: len(self.events) for source in relay.sources - set(before)})
            return any(len(self.events) > before[source] for source in relay.sources)

        wait_for(is_heard, what="an event", instead=lambda: (relay.sources, len(self.events)))
        (source,) = relay.sources
        return source

    def run(self) -> None:
        """Follow the job to its end."""
        with Client(self._url) as client:
            # One by one: others look at the list meanwhile.
            for event in client.stream(self._job_id):
                self.events.append(event)
