"""The wheel, the locks, and the single executable."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
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
from taskd.runtime import interpreter
from tests.support.daemon import Daemon, wait_until
from tests.support.receiver import Receiver

ROOT = Path(__file__).parents[2]
EXECUTABLE = ROOT / "dist" / "taskd"
SOURCES = (
    *("taskd", "tools/packaging", "tools/scripts/dist_venv.sh", "tools/requirements/dist.txt"),
    *("pyproject.toml", "Makefile"),
)
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


def pyproject() -> dict[str, dict[str, list[str]]]:
    document: dict[str, dict[str, list[str]]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return document


def pins(lock: str) -> dict[str, Requirement]:
    """The requirements of a lock that hold on Linux, by name."""
    text = (ROOT / "tools" / "requirements" / f"{lock}.txt").read_text()
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
    text = (ROOT / "tools" / "requirements" / f"{lock}.txt").read_text()
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
    """Of the processor, which a machine that is busy with other tests gives it late."""
    seconds = []
    for _ in range(4):  # at the first it unpacks
        before = os.times()
        said = run(built, HOME=os.environ.get("HOME", "/"))
        after = os.times()
        seconds.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
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
    assert [path.name for path in tmp_path.iterdir()] == [".cache"], "it leaves something behind"
    assert len(unpacked_in(tmp_path / ".cache" / "taskd")) == 1


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


def test_the_executable_says_if_its_python_was_built_without_optimisations(
    built: Path, tmp_path: Path
) -> None:
    made_with = ROOT / ".venv-dist" / "bin" / "python"
    asked = subprocess.run(
        ["sh", "tools/scripts/pythons.sh", "--embeddable", made_with],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    told = subprocess.run(
        [built / "taskd", "check-config"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = "" if asked.stdout else f"warning: {interpreter.SLOW} "
    assert told.stderr.partition("(")[0] == expected


def test_the_executable_can_be_built_on_the_newest_python(tmp_path: Path) -> None:
    listed = subprocess.run(
        ["sh", "tools/scripts/pythons.sh"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    version, newest = listed.stdout.splitlines()[-1].split(" ", 1)
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip(f"no Python is at hand that is newer than {version}")
    for name in ("LICENSE", "Makefile", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("taskd", "tools"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "bench")
        )
    made = subprocess.run(
        ["make", "--no-print-directory", "dist"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": newest},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    said = run(tmp_path / "dist", "demo", HOME=str(tmp_path))
    assert said.returncode == 0, said.stdout + said.stderr


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


def unpacked_in(folder: Path) -> list[Path]:
    """What the executable has unpacked there; that it has its lock there is no matter."""
    return sorted(path for path in folder.iterdir() if path.name != "lock")


def run(
    built: Path, *arguments: str, prefix: tuple[str, ...] = (), **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the executable with these variables only."""
    return subprocess.run(
        [*prefix, built / "taskd", *(arguments or ("--version",))],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_hundred_hard_kills_leave_one_copy(built: Path, tmp_path: Path) -> None:
    """At any moment: while it unpacks, while Python starts, while it works."""
    rng = random.Random(28)
    before = set(Path("/tmp").iterdir())
    cache = tmp_path / ".cache" / "taskd"
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for number in range(100):
        if number % 10 == 0 and cache.exists():
            # It unpacks anew, and is killed meanwhile.
            for folder in unpacked_in(cache):
                (folder / "taskd").unlink(missing_ok=True)
        with subprocess.Popen(
            [built / "taskd", "task", "submit", "--from", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environ,
        ) as process:
            longest = 0.5 if number % 10 == 0 else 0.05
            time.sleep(rng.uniform(0, longest))  # noqa: TID251 - at any moment
            process.kill()
    assert run(built, HOME=str(tmp_path)).returncode == 0
    (copy,) = unpacked_in(cache)
    assert (copy / "taskd").exists()
    left = {path.name for path in set(Path("/tmp").iterdir()) - before}
    assert not [name for name in left if name.startswith(("_MEI", "taskd"))]


def test_many_that_start_at_once_unpack_one_copy(built: Path, tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    processes = [
        subprocess.Popen([built / "taskd", "--version"], env=environ, stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert (process.returncode, said.split()[:1]) == (0, [b"taskd"])
    assert len(unpacked_in(tmp_path / ".cache" / "taskd")) == 1


@pytest.mark.parametrize("damage", ["removed", "cut short", "a file", "half a folder"])
def test_a_copy_that_is_damaged_is_made_anew(built: Path, tmp_path: Path, damage: str) -> None:
    assert run(built, HOME=str(tmp_path)).returncode == 0
    cache = tmp_path / ".cache" / "taskd"
    (copy,) = unpacked_in(cache)
    library = next(path for path in (copy / "_internal").iterdir() if ".so" in path.name)
    if damage == "removed":
        library.unlink()
    elif damage == "cut short":
        os.truncate(library, 1000)
    elif damage == "a file":
        shutil.rmtree(copy)
        copy.write_text("")
    else:
        (cache / "new-1-1" / "_internal").mkdir(parents=True)
        (cache / "old-1-1").mkdir()
        (copy / "taskd").unlink()
    assert run(built, HOME=str(tmp_path)).returncode == 0
    assert unpacked_in(cache) == [copy]
    assert (copy / "taskd").exists()


def test_the_copy_of_another_version_goes_unless_it_is_in_use(built: Path, tmp_path: Path) -> None:
    cache = tmp_path / ".cache" / "taskd"
    used, unused, mine = cache / ("a" * 32), cache / ("b" * 32), cache / "mine"
    for folder in (used, unused, mine):
        folder.mkdir(parents=True)
        (folder / "taskd").write_text("")
    for folder in (cache, cache.parent):
        folder.chmod(0o700)
    holding = os.open(used, os.O_RDONLY)
    fcntl.flock(holding, fcntl.LOCK_SH)
    assert run(built, HOME=str(tmp_path)).returncode == 0
    os.close(holding)
    assert used.exists()
    assert mine.exists()
    assert not unused.exists()


def test_a_daemon_holds_the_copy_that_it_runs_from(built: Path, tmp_path: Path) -> None:
    with Daemon(
        tmp_path, command=(str(built / "taskd"),), environ={"HOME": str(tmp_path)}
    ) as daemon:
        (copy,) = unpacked_in(tmp_path / ".cache" / "taskd")
        other = os.open(copy, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert Path(f"/proc/{daemon.pid}/exe").readlink() == copy / "taskd"
        assert daemon.stop() == 0
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


def test_it_runs_where_tmp_is_mounted_noexec(built: Path, tmp_path: Path) -> None:
    # In a namespace of its own: the machine's /tmp stays what it is. What is below it is
    # reached by what was opened before.
    mounting = "mount -t tmpfs -o noexec none /tmp && mount -t tmpfs none /var/cache && cd /"
    mounting += ' && exec "$@"'
    unshare = ("unshare", "-m", "sh", "-c", mounting, "sh")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], check=False).returncode
    ):
        pytest.skip("no mount namespaces here: needs unshare (util-linux) and root")
    home = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        # The checkout may be below /tmp itself.
        built = Path(shutil.copy(built / "taskd", home)).parent
        assert run(built, prefix=unshare, HOME=str(home)).returncode == 0
        assert len(unpacked_in(home / ".cache" / "taskd")) == 1
        # And where the home can't be written to, or there is none.
        assert run(built, prefix=unshare, HOME="/proc").returncode == 0
        assert run(built, prefix=unshare).returncode == 0
        told = run(built, prefix=unshare, TASKD_CACHE="/tmp/taskd")
        assert told.returncode == 1
        assert "/tmp/taskd: it is mounted noexec" in told.stderr
    finally:
        shutil.rmtree(home)


def test_a_folder_of_somebody_elses_is_not_used(built: Path, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o700)
    open_to_all.chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    for folder, why in (
        (open_to_all, "others may write to it"),
        (open_to_all / "within", "others may replace it"),
        (tmp_path / "link", "Not a directory"),
        (Path("/proc/taskd"), "No such file or directory"),
    ):
        told = run(built, TASKD_CACHE=str(folder))
        assert told.returncode == 1
        (line,) = told.stderr.splitlines()
        assert f"{folder}: {why}" in line
    told = run(built, "serve", TASKD_CACHE="/proc/taskd", TASKD_LOG_FORMAT="json")
    assert "/proc/taskd" in json.loads(told.stderr)["reason"]
    if os.geteuid() == 0:
        os.chown(tmp_path / "open", 12345, -1)
        open_to_all.chmod(0o700)
        told = run(built, TASKD_CACHE=str(open_to_all))
        assert "it belongs to somebody else" in told.stderr


def test_a_part_of_the_executable_says_so(built: Path, tmp_path: Path) -> None:
    whole = (built / "taskd").read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1
    for name, data in (("part", whole[: len(whole) // 2]), ("changed", bytes(broken))):
        program = tmp_path / name
        program.write_bytes(data)
        program.chmod(0o755)
        said = subprocess.run(
            [program], env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False
        )
        assert said.returncode == 1
        assert "copy it again" in said.stderr
    assert not unpacked_in(tmp_path / ".cache" / "taskd")


def test_signals_at_any_moment_of_the_start_are_heard(built: Path, tmp_path: Path) -> None:
    """Also while it unpacks, and as the first process of a container."""
    inside = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], check=False).returncode:
        pytest.skip("no namespaces here: needs unshare (util-linux) and root")
    for number, after_s in enumerate((0.0, 0.02, 0.1, 0.3, 0.0, 0.05, 0.2)):
        home = tmp_path / ("fresh" if number < 4 else "warm")
        if number < 4 and home.exists():
            shutil.rmtree(home)
        home.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [*inside, built / "taskd", "serve"],
            env={**os.environ, "HOME": str(home), "TASKD_SERVER_PORT": "0"},
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda pid=process.pid: awaits_signals(first_of(pid)), what="its start")
            time.sleep(after_s)  # noqa: TID251 - at any moment
            os.kill(first_of(process.pid), signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def first_of(pid: int) -> int:
    """The first process of the namespace that this one has made; 0 before it is there."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text() or 0)


def awaits_signals(pid: int) -> bool:
    """Whether a process has come to block SIGTERM, or to handle it: its first act. Before
    it is what it is to be, unshare blocks it too."""
    try:
        if not pid or Path(f"/proc/{pid}/exe").readlink().name == "unshare":
            return False
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    masks = re.findall(r"^Sig(?:Blk|Cgt):\s*([0-9a-f]+)", status, re.M)
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


def test_it_speaks_utf_8_where_the_locale_does_not(built: Path, tmp_path: Path) -> None:
    for variable, value in (("LANG", "C"), ("LC_ALL", "POSIX"), ("LANG", "")):
        environ = {"HOME": str(tmp_path), variable: value}
        told = run(built, "check-config", "--config", "帅.toml", **environ)  # type: ignore[arg-type] # no prefix
        assert told.returncode == 1
        assert "帅.toml: the config file cannot be read" in told.stderr


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
