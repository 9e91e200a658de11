"""Adapters of the Store port: where tasks live."""
