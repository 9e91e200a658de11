"""The wheel, the locks, and the single executable."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import taskd
from tests.support.daemon import Daemon, wait_until
from tests.support.receiver import Receiver

ROOT = Path(__file__).parents[2]
EXECUTABLE = ROOT / "dist" / "taskd"
SOURCES = ("taskd", "packaging", "requirements/dist.txt", "pyproject.toml", "Makefile")
LOCKS = ("runtime", "dev", "dist", "minimum")

# What an installation brings. A package that is not here was not decided on
# (docs/decisions).
EMBEDDED_DEFAULT = {
    *("trio", "attrs", "idna", "outcome", "sniffio", "sortedcontainers"),
    *("quart-trio", "quart", "aiofiles", "blinker", "flask", "itsdangerous", "jinja2"),
    *("markupsafe", "werkzeug"),
    *("hypercorn", "h11", "h2", "hpack", "hyperframe", "priority", "wsproto"),
    *("click", "httptools", "tzdata"),
}

pytestmark = pytest.mark.timeout(300)


def pyproject() -> dict[str, dict[str, list[str]]]:
    document: dict[str, dict[str, list[str]]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return document


def pins(lock: str) -> dict[str, Requirement]:
    """The requirements of a lock that hold on Linux, by name."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    found = (Requirement(match) for match in re.findall(r"^(\S+==[^\\\n]+?) \\$", text, re.M))
    return {
        canonicalize_name(pin.name): pin
        for pin in found
        if pin.marker is None or pin.marker.evaluate()
    }


def release(pin: Requirement) -> Version:
    return Version(str(pin.specifier).removeprefix("=="))


def cluster_dependencies() -> list[str]:
    extras: Any = pyproject()["project"]["optional-dependencies"]
    return list(extras["cluster"])


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_satisfies_what_the_project_declares(lock: str) -> None:
    locked = pins(lock)
    for text in pyproject()["project"]["dependencies"]:
        declared = Requirement(text)
        pin = locked[canonicalize_name(declared.name)]
        assert declared.specifier.contains(release(pin)), f"{pin} is not {declared}: make lock"


def test_the_minimum_lock_has_the_oldest_releases_that_are_declared() -> None:
    locked = pins("minimum")
    for text in [*pyproject()["project"]["dependencies"], *cluster_dependencies()]:
        declared = Requirement(text)
        (oldest,) = (part.version for part in declared.specifier if part.operator == ">=")
        assert release(locked[canonicalize_name(declared.name)]) == Version(oldest)


def test_the_core_installation_brings_only_what_was_decided_on() -> None:
    assert set(pins("runtime")) == EMBEDDED_DEFAULT


def test_the_installed_metadata_asks_for_the_declared_packages() -> None:
    installed = importlib.metadata.requires("taskd") or []
    declared = [
        *pyproject()["project"]["dependencies"],
        *(f'{text}; extra == "cluster"' for text in cluster_dependencies()),
    ]
    assert {str(Requirement(text)) for text in installed} == {
        str(Requirement(text)) for text in declared
    }


@pytest.mark.parametrize("lock", [*LOCKS, "build"])
def test_a_lock_has_hashes_and_names_no_index(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert requirements
    assert all("--hash=sha256:" in requirement for requirement in requirements)
    assert "://" not in text
    assert "index" not in re.sub(r"--hash=\S+", "", text)


@pytest.fixture(scope="module")
def built() -> Path:
    """`dist/`, built by `make dist` unless it is newer than what goes into it."""
    # Tests run in several processes; the first one to come here builds.
    with (ROOT / ".dist.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build_unless_up_to_date()
    return EXECUTABLE.parent


def build_unless_up_to_date() -> None:
    if not up_to_date():
        made = subprocess.run(
            ["make", "--no-print-directory", "dist"],
            cwd=ROOT,
            env={**os.environ, "PYTHON": base_python()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr


def base_python() -> str:
    """The Python that the environment of the tests was made with."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return str(Path(sys.base_prefix) / "bin" / version)


def up_to_date() -> bool:
    if not EXECUTABLE.exists() or not wheel(EXECUTABLE.parent).exists():
        return False
    built_at = EXECUTABLE.stat().st_mtime
    files = [ROOT / name for name in SOURCES]
    files += [path for folder in SOURCES[:2] for path in (ROOT / folder).rglob("*.*")]
    return all(
        path.stat().st_mtime < built_at
        for path in files
        if path.is_file() and path.suffix != ".pyc"
    )


def wheel(folder: Path) -> Path:
    return folder / f"taskd-{taskd.__version__}-py3-none-any.whl"


def test_the_wheel_has_the_package_its_types_and_its_licence_and_nothing_else(
    built: Path,
) -> None:
    with zipfile.ZipFile(wheel(built)) as archive:
        names = archive.namelist()
    assert "taskd/py.typed" in names
    assert "taskd/cli/__init__.py" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert all(
        name.startswith(("taskd/", f"taskd-{taskd.__version__}.dist-info/")) for name in names
    )


def test_the_wheel_gives_the_command_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([base_python(), "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    subprocess.run(
        [*pip, "install", "-qq", "--no-index", "--no-deps", str(wheel(built))],
        check=True,
        timeout=120,
    )
    (packages,) = environment.glob("lib/python*/site-packages")
    # What it needs is here already, so this test needs no network.
    here = sysconfig.get_path("purelib")
    (packages / "dependencies.pth").write_text(f"{here}\n")
    said = subprocess.run(
        [environment / "bin" / "taskd", "--version"], capture_output=True, text=True, check=True
    )
    assert taskd.__version__ in said.stdout
    files = importlib.metadata.Distribution.at(next(packages.glob("taskd-*.dist-info"))).files
    assert files is not None
    assert "taskd/py.typed" in {str(file) for file in files}


def test_the_executable_starts_in_under_a_second(built: Path) -> None:
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        said = subprocess.run(
            [built / "taskd", "--version"], capture_output=True, text=True, check=True, timeout=60
        )
        seconds.append(time.monotonic() - began)
        assert taskd.__version__ in said.stdout
    assert min(seconds) < 1.0, f"it took {seconds} s"


def test_the_executable_passes_the_demo(built: Path, tmp_path: Path) -> None:
    environ = {"PATH": "/nonexistent", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    demo = subprocess.run(
        [built / "taskd", "demo"],
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert not list(tmp_path.iterdir()), "it leaves something behind"


def test_the_executable_has_what_a_cluster_needs(built: Path, tmp_path: Path) -> None:
    said = subprocess.run(
        [built / "taskd", "check-config"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={
            **os.environ,
            "TASKD_STORE_URL": "mysql://taskd:secret@127.0.0.1:1/taskd",
            "TASKD_BUS_URL": "redis://127.0.0.1:1/0",
            "TASKD_QUEUE_URL": "nsq://127.0.0.1:1",
        },
    )
    assert said.returncode == 0, said.stderr
    assert "would keep tasks in mysql://…@127.0.0.1:1/taskd" in said.stdout


def test_the_executable_knows_the_time_zones_where_the_system_has_none(
    built: Path, tmp_path: Path
) -> None:
    config = tmp_path / "taskd.toml"
    config.write_text('[server]\ntimezone = "Asia/Shanghai"\n')
    environ = {**os.environ, "PYTHONTZPATH": str(tmp_path)}
    done = subprocess.run(
        [built / "taskd", "check-config", "--config", config],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Asia/Shanghai" in done.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_executable_leaves_no_daemon_behind(
    built: Path, tmp_path: Path, workers: int
) -> None:
    sections = {"server": {"workers": workers}}
    daemon = Daemon(tmp_path, command=(str(built / "taskd"),), sections=sections)
    with Receiver() as receiver, daemon:
        with daemon.create_app(receiver.url) as app:
            app.create_task(task_no="1", name="t", content="1", timeout=5000)
        receiver.wait_for(lambda ledger: len(ledger) == 1)
        daemon.kill()
        # The store is free again only once the processes behind have ended, too.
        wait_until(lambda: not lives_with(tmp_path), what="the end of all processes")
        daemon.start()
        assert daemon.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_ctrl_c_at_the_executable_drains_the_daemon(
    built: Path, tmp_path: Path, workers: int
) -> None:
    sections = {"server": {"workers": workers}}
    with Daemon(tmp_path, command=(str(built / "taskd"),), sections=sections) as daemon:
        daemon.signal(signal.SIGINT)
        assert daemon.wait() == 0


def lives_with(folder: Path) -> bool:
    """Whether a process runs whose command line names the folder."""
    me = str(os.getpid())
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and process.name != me:
            try:
                line = (process / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if os.fsencode(folder) in line:
                return True
    return False
