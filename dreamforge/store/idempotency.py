"""Idempotency keys: which job a key stands for, by the unique constraint on ``jobs(user_id, idempotency_key_hash)``.

A key is as old as its job, by the database's clock. One that is older than its time to live is cleared in the
transaction that uses it anew, and a job that is deleted takes its key with it.
"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Select, Update, func, select, update

from dreamforge.errors import IdempotencyKeyReused
from dreamforge.store.tables import JobRow


@dataclass(frozen=True)
class IdempotencyKey:
    """A caller's key as it is kept: sha256 of the key and of the body it came with, in hex; ``ttl`` in seconds."""

    key_hash: str
    fingerprint: str
    ttl: int


def job_of_key(key: IdempotencyKey, *, user_id: str) -> Select[JobRow]:
    """The query for the job that the key stands for."""
    return select(JobRow).where(
        JobRow.user_id == user_id,
        JobRow.idempotency_key_hash == key.key_hash,
        JobRow.created_at > func.now() - timedelta(seconds=key.ttl),
    )


def clear_expired_key(key: IdempotencyKey, *, user_id: str) -> Update:
    """The statement that frees the key when its time is up. It locks the job that has it."""
    return (
        update(JobRow)
        .where(
            JobRow.user_id == user_id,
            JobRow.idempotency_key_hash == key.key_hash,
            JobRow.created_at <= func.now() - timedelta(seconds=key.ttl),
        )
        .values(idempotency_key_hash=None, request_fingerprint=None)
    )


def require_same_request(key: IdempotencyKey, earlier: JobRow) -> None:
    """Raise ``IdempotencyKeyReused`` when the key came with another body before."""
    if earlier.request_fingerprint != key.fingerprint:
        raise IdempotencyKeyReused(job_id=earlier.id)
