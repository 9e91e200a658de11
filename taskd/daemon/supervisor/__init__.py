"""A daemon of several processes: who starts them, watches them, and ends them."""

from taskd.daemon.supervisor.supervisor import run

__all__ = ["run"]
