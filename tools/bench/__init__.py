"""Measures what taskd promises about speed. ``make bench``, or ``python -m tools.bench --help``."""
