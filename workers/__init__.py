"""Celery workers: tasks that each call `core`, and the ledger that they answer to."""
