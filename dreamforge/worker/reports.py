"""A runner's last word as a failure: a program that has gone wrong may say anything."""

import json

from dreamforge.errors import Cancelled, DreamForgeError, GpuError, ModelCorrupt, ModelIncompatible, OutOfMemory
from dreamforge.jobs.frames import StepFailed
from dreamforge.jobs.outcome import Failure

_CODES = frozenset({OutOfMemory.code, ModelCorrupt.code, ModelIncompatible.code, GpuError.code, DreamForgeError.code})
"""What a runner knows of. That it has crashed, or its node is lost, is not its to say."""
_MESSAGE_LENGTH = 2000
_SUGGESTIONS = 10
_DETAILS_LENGTH = 16 * 1024


def reported_failure(last: StepFailed, *, was_told_to_stop: bool) -> Failure:
    """The failure that a runner reports; `internal` where it has no business with its code."""
    message = last.message[:_MESSAGE_LENGTH]
    if last.code not in (_CODES | {Cancelled.code} if was_told_to_stop else _CODES):
        return Failure(DreamForgeError.code, message, {"reported": last.code[:100]})
    details = last.details if len(json.dumps(last.details)) <= _DETAILS_LENGTH else {}
    suggestions = [str(suggestion)[:_MESSAGE_LENGTH] for suggestion in last.suggestions[:_SUGGESTIONS]]
    return Failure(last.code, message, details, suggestions)
