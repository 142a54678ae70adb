"""Python's garbage collector, which stops everything while it looks at every object that there is."""

import gc


def leave_out_what_is_there() -> None:
    """Have it look no more at what exists now: modules and what a replica is made of, a third of a second for nothing.

    For the end of a process's start. See the standard library's ``gc.freeze``.
    """
    gc.collect()
    gc.freeze()
