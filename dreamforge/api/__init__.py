"""The `/v1` door. It speaks to Postgres, the queue and the object store, and to nothing that computes."""
