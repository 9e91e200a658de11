"""Adapters of the Queue port: wake-ups on their way to a worker."""
