"""Adapters of the Bus port: signals between nodes."""
