"""Who is compared, how each is set up, and what it can't do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
HOME = ROOT / ".bench-peers"
APPS = Path(__file__).parent / "apps"
PYTHON = HOME / "venv" / "bin" / "python"
PYTHON_ARQ = HOME / "venv-arq" / "bin" / "python"
NODE_FOLDER = HOME / "bullmq"

REDIS_CLASSES = ("memory", "everysec", "always")
CLASSES = {
    "fsync": "fsync before submit returns",
    "always": "fsync before submit returns (Redis, appendfsync always)",
    "everysec": "fsync once a second (Redis, appendfsync everysec)",
    "memory": "none (memory only)",
}


@dataclass(frozen=True)
class Peer:
    """One way to have the job done."""

    key: str
    name: str
    setup: str
    """Processes and concurrency, in words for the page."""
    classes: tuple[str, ...]
    workers: tuple[tuple[str, ...], ...]
    """Command lines; none where the submitter's process does the work."""
    submitter: tuple[str, ...]
    broker: str
    """"redis", "postgres", "sqlite", "taskd", or "redis or none": none for memory."""
    packages: tuple[str, ...] = ()
    """Whose versions are told."""
    tasks: int = 5_000
    """In each throughput run."""
    recovers_s: float = 0
    """Until a killed worker's tasks have come back, set up as for the kills."""
    prepare: tuple[str, ...] = ()


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (str(PYTHON), module, *arguments)


def _tool(name: str, *arguments: str) -> tuple[str, ...]:
    return (str(PYTHON.with_name(name)), *arguments)


def _submitter(app: str) -> tuple[str, ...]:
    return _python("submitter.py", app)


def _taskd(workers: int) -> Peer:
    arguments = ("--workers", str(workers)) if workers > 1 else ()
    processes = "a supervisor and 2 workers" if workers > 1 else "one process"
    return Peer(
        key=f"taskd-{workers}",
        name="taskd" if workers == 1 else f"taskd, {workers} workers",
        setup=f"{processes}, on SQLite; 500 attempts at a time at most, 125 to one receiver; "
        "log level warning; submitted over HTTP, by blocking sockets or 16 of them under a "
        "selector",
        classes=("fsync",),
        workers=((sys.executable, "-m", "taskd", "serve", "--config", "taskd.toml", *arguments),),
        submitter=_submitter("taskd_app"),
        broker="taskd",
        recovers_s=7 if workers > 1 else 0,
    )


PEERS = (
    _taskd(1),
    _taskd(2),
    Peer(
        key="bullmq",
        name="BullMQ",
        setup="one Node process, concurrency 64, undici; addBulk for batches",
        classes=REDIS_CLASSES,
        workers=(("node", str(NODE_FOLDER / "worker.mjs")),),
        submitter=("node", str(NODE_FOLDER / "submitter.mjs")),
        broker="redis",
        packages=("npm:bullmq", "npm:ioredis"),
        recovers_s=8,
    ),
    Peer(
        key="taskiq",
        name="taskiq",
        setup="RedisStreamBroker, one worker process of up to 64 coroutines on uvloop; "
        "a scheduler process for what is due later",
        classes=REDIS_CLASSES,
        workers=(
            (
                *_tool("taskiq", "worker", "--workers", "1", "--max-async-tasks", "64"),
                "--log-level",
                "WARNING",
                "--max-prefetch",
                "64",
                "taskiq_app:broker",
            ),
            (
                *_tool("taskiq", "scheduler", "--update-interval", "1", "--log-level", "WARNING"),
                "taskiq_app:scheduler",
            ),
        ),
        submitter=_submitter("taskiq_app"),
        broker="redis",
        packages=("taskiq", "taskiq-redis"),
        recovers_s=9,
    ),
    Peer(
        key="saq",
        name="SAQ",
        setup="one process of 32 coroutines on uvloop",
        classes=REDIS_CLASSES,
        workers=(_python("saq_app.py"),),
        submitter=_submitter("saq_app"),
        broker="redis",
        packages=("saq",),
        recovers_s=11,
    ),
    Peer(
        key="huey",
        name="Huey",
        setup="two consumer processes of 8 threads",
        classes=REDIS_CLASSES,
        workers=(_tool("huey_consumer", "huey_app.huey", "-w", "8", "-k", "thread", "-q"),) * 2,
        submitter=_submitter("huey_app"),
        broker="redis",
        packages=("huey",),
    ),
    Peer(
        key="huey-sqlite",
        name="Huey on SQLite",
        setup="SqliteHuey(fsync=True), one consumer process of 4 threads, polling every 2 ms",
        classes=("fsync",),
        workers=(
            (
                *_tool("huey_consumer", "huey_app.huey", "-w", "4", "-k", "thread", "-q"),
                "-d",
                "0.002",
                "-m",
                "0.002",
            ),
        ),
        submitter=_submitter("huey_app"),
        broker="sqlite",
        packages=("huey",),
    ),
    Peer(
        key="dramatiq",
        name="Dramatiq",
        setup="two processes of 8 threads, dramatiq_queue_prefetch=64 (default 16), "
        "dramatiq_worker_timeout=100 (ms; default 1000)",
        classes=REDIS_CLASSES,
        workers=(
            (
                *("env", "dramatiq_worker_timeout=100", "dramatiq_queue_prefetch=64"),
                *_tool("dramatiq", "dramatiq_app", "--processes", "2", "--threads", "8"),
            ),
        ),
        submitter=_submitter("dramatiq_app"),
        broker="redis",
        packages=("dramatiq",),
        recovers_s=8,
    ),
    Peer(
        key="arq",
        name="arq",
        setup="one process, up to 64 jobs at a time on uvloop, polling every 5 ms",
        classes=REDIS_CLASSES,
        workers=((str(PYTHON_ARQ), "arq_app.py"),),
        submitter=(str(PYTHON_ARQ), "submitter.py", "arq_app"),
        broker="redis",
        packages=("arq",),
        tasks=2_500,
        recovers_s=12,
    ),
    Peer(
        key="celery",
        name="Celery",
        setup="one process, pool of 8 threads, prefetch 16 each, acks late, no results, no gossip",
        classes=REDIS_CLASSES,
        workers=(
            (
                *_tool("celery", "-A", "celery_app", "worker", "-P", "threads", "-c", "8"),
                *("-l", "WARNING"),
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
            ),
        ),
        submitter=_submitter("celery_app"),
        broker="redis",
        packages=("celery", "kombu"),
        tasks=2_500,
        recovers_s=8,
    ),
    Peer(
        key="rq",
        name="RQ",
        setup="two SimpleWorker processes (no fork for each job), one of which schedules; "
        "enqueue_many for batches",
        classes=REDIS_CLASSES,
        workers=(_python("rq_app.py"), _python("rq_app.py")),
        submitter=_submitter("rq_app"),
        broker="redis",
        packages=("rq",),
        tasks=1_500,
    ),
    Peer(
        key="procrastinate",
        name="Procrastinate",
        setup="one process of 32 coroutines on uvloop, LISTEN/NOTIFY, polling every 0.2 s; "
        "batch_defer for batches; synchronous_commit on",
        classes=("fsync",),
        workers=(_python("procrastinate_app.py"),),
        submitter=_submitter("procrastinate_app"),
        broker="postgres",
        packages=("procrastinate", "psycopg"),
        tasks=2_500,
        prepare=_python("procrastinate_app.py", "prepare"),
    ),
    Peer(
        key="apscheduler",
        name="APScheduler",
        setup="one process, which also submits; AsyncIOScheduler on uvloop; in memory, or "
        "RedisJobStore",
        classes=("memory", "always"),
        workers=(),
        submitter=_submitter("apscheduler_app"),
        broker="redis or none",
        packages=("apscheduler",),
        tasks=2_500,
    ),
)

BY_KEY = {peer.key: peer for peer in PEERS}
