"""Stock RQ, killed at a moment: `python -m tests.benchmarks.losses_rq REDIS QUEUES [PLACE SIGNAL]`."""

import os
import signal
import subprocess
import sys
import time
import uuid
from typing import Any

from redis import Redis
from rq import Queue, Retry, Worker
from rq.intermediate_queue import IntermediateQueue

from tests.benchmarks.moments import (
    AFTER_POP,
    AFTER_REGISTRATION,
    BEFORE_ACKNOWLEDGEMENT,
    IN_THE_JOB,
    Fate,
    Moment,
    die,
)

_PATIENCE = 30.0
_PASSES = 4
_BACK = 3600.0
"""Seconds by which its records are dated back before each pass: longer than anything waits for."""
_WORK_SECONDS = 0.3


class StockRq:
    """RQ's worker that forks, with so many queues."""

    def __init__(self, redis_url: str, *, queues: int) -> None:
        self._url = redis_url
        self._names = ["first", "second"][:queues]

    def fate(self, moment: Moment) -> Fate:
        """Of one job whose worker is killed then."""
        with Redis.from_url(self._url) as redis:
            redis.flushall()
            key = f"job-{uuid.uuid4().hex}"
            queue = Queue("first", connection=redis)
            queue.enqueue(work, self._url, key, moment.place == IN_THE_JOB, retry=Retry(max=3))
            with self._process(moment.place, str(int(moment.signal))) as mortal:
                mortal.wait(_PATIENCE)
            for _ in range(_PASSES):
                self._date_back(redis)
                with self._process() as healthy:
                    healthy.wait(_PATIENCE)
            executions, commits = (int(redis.get(f"{key}:{what}") or 0) for what in ("executed", "committed"))
        return Fate(executions, commits)

    def _process(self, *moment: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", __name__, self._url, ",".join(self._names), *moment]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def _date_back(self, redis: "Redis") -> None:
        for pattern in ("rq:wip:*", "rq:executions:*"):
            for key in redis.scan_iter(pattern):
                members: Any = redis.zrange(key, 0, -1)
                for member in members:
                    redis.zincrby(key, -_BACK, member)
        for name in self._names:
            intermediate = IntermediateQueue(Queue(name, connection=redis).key, connection=redis)
            for key in redis.scan_iter(intermediate.get_first_seen_key("*")):
                seen: Any = redis.get(key)
                redis.set(key, float(seen) - _BACK)
        for key in redis.scan_iter("rq:clean_registries:*"):
            redis.delete(key)


def work(redis_url: str, key: str, is_killed: bool) -> None:
    """A job that counts its executions and its commits, and is killed in the middle of the first."""
    with Redis.from_url(redis_url) as redis:
        executions: Any = redis.incr(f"{key}:executed")
        time.sleep(_WORK_SECONDS)
        if is_killed and executions == 1:
            _kill_both()
        redis.incr(f"{key}:committed")


def _kill_both() -> None:
    """The worker, whose child we are, and ourselves."""
    os.kill(os.getppid(), signal.SIGKILL)
    die(signal.SIGKILL)


def _prepare_to_die(place: str, number: int) -> None:
    dequeue: Any = Queue.dequeue_any.__func__
    prepare = Worker.prepare_execution

    def dequeue_and_die(cls: type[Queue], *arguments: Any, **options: Any) -> Any:
        found = dequeue(cls, *arguments, **options)
        if found is not None:
            die(number)
        return found

    def prepare_and_die(self: Worker, job: Any) -> Any:
        execution = prepare(self, job)
        die(number)
        return execution

    if place == AFTER_POP:
        Queue.dequeue_any = classmethod(dequeue_and_die)  # type: ignore[assignment] - it dies there
    if place == AFTER_REGISTRATION:
        Worker.prepare_execution = prepare_and_die  # type: ignore[method-assign] - it dies there
    if place == BEFORE_ACKNOWLEDGEMENT:
        Worker.handle_job_success = lambda *_, **__: _kill_both()  # type: ignore[method-assign] - it dies there


def _main(redis_url: str, names: str, place: str = "", number: str = "0") -> None:
    _prepare_to_die(place, int(number))
    with Redis.from_url(redis_url) as redis:
        queues = [Queue(name, connection=redis) for name in names.split(",")]
        Worker(queues, connection=redis).work(burst=not place, logging_level="CRITICAL")


if __name__ == "__main__":
    _main(*sys.argv[1:])
