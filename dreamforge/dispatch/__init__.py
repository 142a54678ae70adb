"""Takes queued steps and has them run on Ray."""
