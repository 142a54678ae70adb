"""Postgres, the truth about every job. One method is one transaction; nobody outside sees a session."""
