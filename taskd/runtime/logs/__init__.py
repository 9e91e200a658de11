"""Logs: one line per event, on standard error.

`lines` makes a line of a record, `output` writes it whole or not at all, `handlers` decide
when, and `setup` sends all logs, warnings and uncaught exceptions there. A standard error that
is full, stuck or closed delays nothing: lines that it does not take are counted, and their
number is logged once it takes lines again. `task_log` has the lines about tasks.
"""

from taskd.runtime.logs.handlers import DirectHandler, LineHandler
from taskd.runtime.logs.lines import WITHHELD, JsonFormatter, Style, TextFormatter, log_event
from taskd.runtime.logs.output import Output
from taskd.runtime.logs.setup import adjust, degraded, logging_by, logging_to

__all__ = [
    "WITHHELD",
    "DirectHandler",
    "JsonFormatter",
    "LineHandler",
    "Output",
    "Style",
    "TextFormatter",
    "adjust",
    "degraded",
    "log_event",
    "logging_by",
    "logging_to",
]
