"""What a running attempt writes: its events, its items, its artifacts, its outcome. Every write is fenced."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Update,
    bindparam,
    func,
    insert,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from dreamforge.errors import LeaseLost
from dreamforge.jobs.events import (
    ArtifactCreated,
    Event,
    ItemFinished,
    ItemProgress,
    ItemStarted,
    ModelInstalled,
    StepDegraded,
    StepStarted,
)
from dreamforge.jobs.job import ItemStatus
from dreamforge.jobs.outcome import Outcome
from dreamforge.jobs.progress import DownloadStage, Stage
from dreamforge.store import events
from dreamforge.store.engine import database_errors
from dreamforge.store.fence import Fence, hold
from dreamforge.store.step_calls import RUNG, StepCall, StepItem, read_call, read_missing_items
from dreamforge.store.tables import ArtifactRow, ItemRow, StepRow

_RENEW = text(
    """
    UPDATE steps SET lease_expires_at = now() + make_interval(secs => :lease_seconds)
    FROM jobs
    WHERE steps.id = :step_id AND steps.attempt = :attempt AND steps.lease_token = :lease_token
      AND steps.status = 'running' AND jobs.id = steps.job_id
    RETURNING jobs.cancel_requested_at IS NOT NULL AS cancel_requested
    """
)

# Asked for twice a second: it locks nothing and writes nothing.
_IS_CANCEL_REQUESTED = text(
    """
    SELECT jobs.cancel_requested_at IS NOT NULL AS cancel_requested
    FROM steps JOIN jobs ON jobs.id = steps.job_id
    WHERE steps.id = :step_id AND steps.attempt = :attempt AND steps.lease_token = :lease_token
      AND steps.status = 'running'
    """
)

_NUMBER = text("UPDATE steps SET last_write = :number WHERE id = :step_id AND last_write < :number")

_RAISE_JOB_PROGRESS = text(
    """
    UPDATE jobs SET progress = GREATEST(progress, (
        SELECT avg(items.progress) FROM items JOIN steps ON steps.id = items.step_id WHERE steps.job_id = jobs.id))
    WHERE id = :job_id
    """
)

_COUNT_ITEM_DONE = text("UPDATE jobs SET items_done = items_done + 1 WHERE id = :job_id")


@dataclass(frozen=True)
class NewArtifact:
    """A stored image. ``checksum`` is the sha256 of its bytes in hex; ``timings`` are seconds by stage."""

    id: uuid.UUID
    item_index: int
    format: str
    width: int
    height: int
    seed: int
    s3_key: str
    size_bytes: int
    checksum: str
    metadata: dict[str, Any]
    timings: dict[str, float]


class AttemptStore:
    """One attempt's writes. Each raises ``LeaseLost`` when the attempt was replaced and ``DatabaseUnavailable``.

    A write with a ``number`` counts once, whatever becomes of the answer to its COMMIT: it may be repeated, as long as
    none with a higher one was made.
    """

    def __init__(self, *, engine: Engine, fence: Fence) -> None:
        self._engine = engine
        self._fence = fence

    def renew(self, *, lease_seconds: float) -> bool:
        """Renew the lease, even one that has run out. True when the job's cancel was requested."""
        values = {**self._fence.values(), "lease_seconds": lease_seconds}
        with database_errors(), self._engine.begin() as connection:
            row = connection.execute(_RENEW, values).first()
        return self._cancel_requested(row)

    def is_cancel_requested(self) -> bool:
        """True when the job's cancel was requested."""
        with database_errors(), self._engine.connect() as connection:
            row = connection.execute(_IS_CANCEL_REQUESTED, self._fence.values()).first()
        return self._cancel_requested(row)

    def require_lease(self) -> None:
        """Return while the attempt holds its lease."""
        self.is_cancel_requested()

    def note_cancel_seen(self) -> None:
        """Write that the request was noticed, and when."""
        with database_errors(), self._engine.begin() as connection:
            hold(connection, self._fence)
            connection.execute(self._step_update().values(cancel_seen_at=func.now()))

    def load_call(self) -> StepCall:
        """The step's call, with the items that are not finished."""
        with database_errors(), self._engine.begin() as connection:
            hold(connection, self._fence)
            return read_call(connection, self._fence.step_id)

    def missing_items(self) -> tuple[StepItem, ...]:
        """The items that are not finished."""
        with database_errors(), self._engine.begin() as connection:
            hold(connection, self._fence)
            return read_missing_items(connection, self._fence.step_id)

    def degrade(self, event: StepDegraded, *, number: int = 0) -> None:
        """Note the rung that the step is on from now, also for attempts to come."""

        def write(connection: Connection) -> None:
            connection.execute(self._step_update().values(metadata_json=_merged({RUNG: event.rung})))
            self._append(connection, event)

        self._write(write, number)

    def arrive(self, metadata: dict[str, Any]) -> None:
        """Say where the supervisor is, before it does anything that it may not come back from."""
        with database_errors(), self._engine.begin() as connection:
            hold(connection, self._fence)
            connection.execute(self._step_update().values(metadata_json=self._located(metadata)))

    def start(self, event: StepStarted, *, metadata: dict[str, Any], number: int = 0) -> None:
        """The supervisor has taken over: from here the lease is its own."""

        def write(connection: Connection) -> None:
            values = {"started_at": func.now(), "metadata_json": self._located(metadata)}
            connection.execute(self._step_update().values(values))
            self._append(connection, event)

        self._write(write, number)

    def record(self, event: Event, *, number: int = 0) -> None:
        """Write an event that changes nothing else."""
        self._write(lambda connection: self._append(connection, event), number)

    def begin_item(self, event: ItemStarted, *, stage: str = Stage.ENCODE_PROMPT, number: int = 0) -> None:
        """Write the seed an item is drawn with, just before it begins, and its first stage."""

        def write(connection: Connection) -> None:
            connection.execute(
                self._item_update(event.item_index).values(
                    status=ItemStatus.RUNNING,
                    seed=event.seed,
                    stage=stage,
                    started_at=func.coalesce(ItemRow.started_at, func.now()),
                )
            )
            self._append(connection, event)

        self._write(write, number)

    def record_progress(self, event: ItemProgress, *, number: int = 0) -> None:
        """Raise the item's and the job's progress; they never go down."""

        def write(connection: Connection) -> None:
            connection.execute(
                self._item_update(event.item_index).values(
                    stage=event.stage, progress=func.greatest(ItemRow.progress, event.progress)
                )
            )
            connection.execute(_RAISE_JOB_PROGRESS, {"job_id": self._fence.job_id})
            self._append(connection, event)

        self._write(write, number)

    def publish(self, new: NewArtifact, *, number: int = 0) -> None:
        """Finish an item: its artifact, its row, the job's counts and its events, in one transaction."""

        def write(connection: Connection) -> None:
            connection.execute(insert(ArtifactRow).values(self._artifact_values(new)))
            self._finish_item(connection, new.item_index, stage=Stage.SAVE)
            for event in _finishing(new):
                self._append(connection, event)

        self._write(write, number)

    def install(self, event: ModelInstalled, finished: ItemFinished, *, number: int = 0) -> None:
        """Finish an item that is a model: its row, the job's counts and its events, in one transaction."""

        def write(connection: Connection) -> None:
            last = DownloadStage.REGISTER
            self._finish_item(connection, finished.item_index, stage=last)
            done = ItemProgress(item_index=finished.item_index, stage=last, stage_progress=1.0, progress=1.0)
            for each in (done, event, finished):
                self._append(connection, each)

        self._write(write, number)

    def report(self, outcome: Outcome, *, metadata: dict[str, Any]) -> None:
        """The attempt's last write: how it ended."""
        with database_errors(), self._engine.begin() as connection:
            hold(connection, self._fence)
            connection.execute(
                self._step_update().values(outcome_json=outcome.as_json(), metadata_json=_merged(metadata))
            )

    def _finish_item(self, connection: Connection, item_index: int, *, stage: str) -> None:
        connection.execute(
            self._item_update(item_index).values(
                status=ItemStatus.SUCCEEDED, progress=1.0, stage=stage, finished_at=func.now()
            )
        )
        # What finishes items is not what kills its processes.
        connection.execute(self._step_update().values(failures=0, crashes=0, rescues=0))
        connection.execute(_COUNT_ITEM_DONE, {"job_id": self._fence.job_id})
        connection.execute(_RAISE_JOB_PROGRESS, {"job_id": self._fence.job_id})

    def _write(self, write: Callable[[Connection], None], number: int) -> None:
        with database_errors(), self._engine.begin() as connection:
            hold(connection, self._fence)
            if not number or connection.execute(_NUMBER, {**self._fence.values(), "number": number}).rowcount:
                write(connection)

    def _cancel_requested(self, row: Row[*tuple[Any, ...]] | None) -> bool:
        if row is None:
            raise LeaseLost(f"attempt {self._fence.attempt} of step {self._fence.step_id} was replaced")
        return bool(row.cancel_requested)

    def _append(self, connection: Connection, event: Event) -> None:
        fence = self._fence
        connection.execute(*events.append(event, job_id=fence.job_id, step_id=fence.step_id, attempt=fence.attempt))

    def _located(self, metadata: dict[str, Any]) -> ColumnElement[Any]:
        # With the attempt: what an earlier one has written here may still stand.
        return _merged({**metadata, "attempt": self._fence.attempt})

    def _step_update(self) -> Update:
        return update(StepRow).where(StepRow.id == self._fence.step_id)

    def _item_update(self, item_index: int) -> Update:
        return update(ItemRow).where(ItemRow.step_id == self._fence.step_id, ItemRow.item_index == item_index)

    def _artifact_values(self, new: NewArtifact) -> dict[str, Any]:
        return {
            "id": new.id,
            "job_id": self._fence.job_id,
            "step_id": self._fence.step_id,
            "item_index": new.item_index,
            "attempt": self._fence.attempt,
            "format": new.format,
            "width": new.width,
            "height": new.height,
            "seed": new.seed,
            "s3_key": new.s3_key,
            "size_bytes": new.size_bytes,
            "checksum": new.checksum,
            "metadata_json": new.metadata,
        }


def _finishing(new: NewArtifact) -> tuple[Event, ...]:
    return (
        ItemProgress(item_index=new.item_index, stage=Stage.SAVE, stage_progress=1.0, progress=1.0),
        ArtifactCreated(
            item_index=new.item_index,
            artifact_id=str(new.id),
            size_bytes=new.size_bytes,
            checksum=f"sha256:{new.checksum}",
        ),
        ItemFinished(item_index=new.item_index, seed=new.seed, timings=new.timings),
    )


def _merged(metadata: dict[str, Any]) -> ColumnElement[Any]:
    return StepRow.metadata_json.concat(bindparam(None, metadata, type_=JSONB, unique=True))
