"""One attempt to download a model that the API was asked for. It needs no GPU, and no process beside its own."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Protocol

from dreamforge.errors import DreamForgeError, LeaseLost, NodeError, StorageUnavailable, reason_of
from dreamforge.installation.observer import Observer
from dreamforge.installation.request import Installation, InstallRequest
from dreamforge.jobs.events import ItemFinished, ItemStarted, ModelInstalled, RunnerWarning
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.jobs.progress import DownloadStage
from dreamforge.models.weights import Kind
from dreamforge.store.step_calls import StepCall
from dreamforge.worker.attempt import RunningAttempt, failure_of
from dreamforge.worker.download_journal import DownloadJournal
from dreamforge.worker.halt import Halt
from dreamforge.worker.journal import Journal

LONGEST = 86_400.0
"""Seconds that an attempt may take: a source that sends nothing is given up long before."""
_LOOK_SECONDS = 0.2
_LEAVE_SECONDS = 0.5
"""What a download that is to end may take for that, before its process ends without it: a call to a server may hang."""


class Installs(Protocol):
    """What brings models: an ``Installer``, which is not named here, since its hubs' libraries take their time."""

    def install(self, request: InstallRequest, *, observer: Observer, check: Callable[[], None]) -> Installation:
        """Have the model installed and enabled; see ``Installer.install``."""
        ...


class DownloadSupervisor:
    """Runs one attempt of a step that downloads. Raises ``LeaseLost`` when it was replaced.

    Whatever it leaves behind is for the next attempt to go on with. It is to be the last that its process does: a call
    that hangs is left to that end.
    """

    def __init__(self, *, running: RunningAttempt, installer: Installs) -> None:
        self._running = running
        self._installer = installer

    def run(self) -> Outcome:
        """Take over the lease, download, report."""
        call = self._running.load_call()
        return self._running.run(call, self._work, limit=float(call.options.get("step_timeout") or LONGEST))

    def _work(self, call: StepCall, journal: Journal, halt: Halt) -> Failure | None:
        request = request_of(call.params)
        (item,) = call.items
        journal.begin_item(ItemStarted(item_index=item.index, seed=None), stage=DownloadStage.RESOLVE)
        observer = DownloadJournal(
            journal,
            item_index=item.index,
            model=request.name or request.reference,
            origin=request.reference.partition(":")[0],
        )
        try:
            done = _unless_halted(
                lambda: self._installer.install(request, observer=observer, check=halt.check_idle), halt
            )
            self._tell(done, journal)
            if not (done.is_published or request.is_local_only):
                # Here it is installed. Everywhere else it is not, and that is what was asked for.
                return failure_of(StorageUnavailable(done.warnings[-1] if done.warnings else None))
            journal.install(
                ModelInstalled(
                    model_id=str(done.registered.id),
                    name=done.descriptor.name,
                    version=done.descriptor.version,
                    is_new=done.registered.is_new,
                ),
                ItemFinished(item_index=item.index, seed=None, timings=observer.timings()),
            )
        except LeaseLost:
            raise
        except DreamForgeError as error:
            return failure_of(error)
        except OSError as error:
            # A folder of other machines that is away for a while, or one that nobody may write to.
            return failure_of(NodeError("The folder of models cannot be used.", details=reason_of(error)))
        return None

    def _tell(self, done: Installation, journal: Journal) -> None:
        self._running.metadata["download"] = {
            "model_id": str(done.registered.id),
            "downloaded_bytes": done.downloaded_bytes,
            "is_published": done.is_published,
        }
        for warning in done.warnings:
            journal.record(RunnerWarning(message=warning))


def request_of(params: dict[str, Any]) -> InstallRequest:
    """What the job's parameters ask for."""
    kind = params.get("kind")
    return InstallRequest(
        reference=params["source"],
        name=params.get("name"),
        version=params.get("version"),
        kind=None if kind is None else Kind(kind),
        as_default=params.get("default"),
        is_local_only=bool(params.get("local_only")),
    )


def _unless_halted(install: Callable[[], Installation], halt: Halt) -> Installation:
    """What ``install`` returns, or raises; what ends the step as soon as that comes, also while a call hangs."""
    done: Future[Installation] = Future()

    def run() -> None:
        try:
            done.set_result(install())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, name="install", daemon=True).start()
    while not wait([done], timeout=_LOOK_SECONDS).done:
        try:
            halt.check_idle()
        except DreamForgeError:
            # It was told by the same words. What it has finished meanwhile counts.
            if wait([done], timeout=_LEAVE_SECONDS).done and done.exception() is None:
                return done.result()
            raise
    return done.result()
