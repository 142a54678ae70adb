"""What a job is: plain values and decisions, no I/O. Needs nothing but the standard library."""
