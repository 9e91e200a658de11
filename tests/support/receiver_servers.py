"""Servers that people's receivers run on, each with an example receiver on it."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.examples import EXAMPLES
from tools.servers.process import Server, find

_ROW = re.compile(r"^\| ([\w-]+) \| `(.+ .*9000.*)` \|$", re.MULTILINE)
_MODULES = Path("/usr/lib/apache2/modules")
_INSTALL = "apt-get install nginx php-fpm apache2-bin"


def documented() -> dict[str, str]:
    """The commands of examples/README.md by their servers; they say 9000 for the port."""
    return dict(_ROW.findall((EXAMPLES / "README.md").read_text()))


class ReceiverServer(Server):
    """A server that runs an example receiver, as a process group of its own.

    Args:
        folder: one that is there.
        command: what runs it in examples/, with 9000 for the port.

    Attributes:
        app_key, secret_key: what callbacks must be signed with; set before the start.
    """

    def __init__(self, folder: Path, command: str = "") -> None:
        super().__init__(folder)
        self.app_key = self.secret_key = ""
        self._command = command

    def command(self) -> list[str]:
        words = shlex.split(self._command.replace("9000", str(self.port)))
        return ["env", "--chdir", str(EXAMPLES), *words]

    def environ(self) -> dict[str, str]:
        # The programs of the environment that runs the tests come first.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {
            **os.environ,
            "PATH": path,
            "HOME": str(self.folder),  # gunicorn puts a socket there
            "PYTHONDONTWRITEBYTECODE": "1",
            "TASKD_APP_KEY": self.app_key,
            "TASKD_SECRET_KEY": self.secret_key,
            "RECEIVER_STATE": str(self.folder / "receiver.json"),
        }

    def _is_ready(self, before: int) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=5).close()
        except ConnectionRefusedError:
            return False
        return True

    def stop(self) -> None:
        """End all its processes at once: none has anything to lose."""
        self.kill()

    def kill(self) -> None:
        if self._process is not None:
            # Its leader is not waited for yet, so the number is still the group's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._gone()


class _OfTheSystem(ReceiverServer):
    """A program that Debian ships, run without root's rights.

    Args:
        home: the folder with receiver.php in it, which all of them share.
        name: a folder in it, for this one alone.
    """

    def __init__(self, home: Path, name: str) -> None:
        super().__init__(_given_away(home / name))
        self.home = home

    def command(self) -> list[str]:
        self.log_path.chmod(0o666)  # some open their standard error by its path
        words = self.program()
        if os.geteuid() != 0:
            return words
        return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *words]

    def program(self) -> list[str]:
        """Write its configuration, and return its command line."""
        raise NotImplementedError

    def write(self, text: str) -> str:
        """Write its configuration; the path."""
        path = self.folder / "server.conf"
        path.write_text(text)
        return str(path)


class PhpFpm(_OfTheSystem):
    """PHP's FastCGI server, on a socket in the folder that all share."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, "php-fpm")

    def program(self) -> list[str]:
        binary = find(*_php_fpms(), install=_INSTALL)
        pool = f"""
[global]
daemonize = no
error_log = /proc/self/fd/2
[receiver]
listen = {self.home}/fpm.sock
pm = static
pm.max_children = 2
catch_workers_output = yes
env[RECEIVER_STATE] = {self.home}/receiver.json
"""
        return [binary, "--nodaemonize", "--fpm-config", self.write(pool)]

    def _is_ready(self, before: int) -> bool:
        return "ready to handle connections" in self.log()


class Nginx(_OfTheSystem):
    """nginx in front of `PhpFpm`.

    Args:
        underscores: whether it lets names with underscores through.
    """

    def __init__(self, home: Path, name: str, *, underscores: bool = False) -> None:
        super().__init__(home, name)
        self._underscores = "on" if underscores else "off"

    def program(self) -> list[str]:
        binary = find("nginx", install=_INSTALL)
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "\n".join(f"  {name}_temp_path {self.folder}/{name};" for name in names)
        return [
            *(binary, "-e", "stderr", "-c"),
            self.write(f"""
daemon off;
master_process off;
pid {self.folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
  access_log off;
{places}
  server {{
    listen {self.address};
    underscores_in_headers {self._underscores};
    location / {{
      fastcgi_pass unix:{self.home}/fpm.sock;
      fastcgi_param SCRIPT_FILENAME {self.home}/receiver.php;
      fastcgi_param REQUEST_METHOD $request_method;
      fastcgi_param CONTENT_TYPE $content_type;
      fastcgi_param CONTENT_LENGTH $content_length;
      fastcgi_param TASKD_APP_KEY {self.app_key};
      fastcgi_param TASKD_SECRET_KEY {self.secret_key};
    }}
  }}
}}
"""),
        ]


class Apache(_OfTheSystem):
    """Apache in front of `PhpFpm`."""

    def program(self) -> list[str]:
        binary = find("apache2", install=_INSTALL)
        modules = "\n".join(
            f"LoadModule {name}_module {_MODULES}/mod_{name}.so"
            for name in ("mpm_event", "authz_core", "setenvif", "proxy", "proxy_fcgi")
        )
        # -X: one process, in the foreground.
        return [
            *(binary, "-X", "-f"),
            self.write(f"""
ServerRoot {self.folder}
DefaultRuntimeDir {self.folder}
PidFile {self.folder}/apache.pid
ErrorLog /proc/self/fd/2
ServerName localhost
Listen {self.address}
{modules}
DocumentRoot {self.folder}
ProxyPass / unix:{self.home}/fpm.sock|fcgi://localhost{self.home}/receiver.php
ProxyFCGISetEnvIf "true" TASKD_APP_KEY {self.app_key}
ProxyFCGISetEnvIf "true" TASKD_SECRET_KEY {self.secret_key}
"""),
        ]


def _given_away(folder: Path) -> Path:
    """The folder, made where it is missing; of the user that `_OfTheSystem` runs as."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return folder


@contextmanager
def home_of_php() -> Iterator[Path]:
    """A folder with receiver.php in it, to be shared by servers of the system; the
    tests' own may be closed to them.

    Raises:
        ServerMissing: one of them is not installed.
    """
    for name in ("nginx", "apache2", *_php_fpms()):
        find(name, install=_INSTALL)
    with tempfile.TemporaryDirectory(prefix="receivers-") as name:
        home = _given_away(Path(name))
        shutil.copy(EXAMPLES / "receiver.php", home)
        yield home


def _php_fpms() -> list[str]:
    """What is installed, its name with the release; else what is missing."""
    return sorted(path.name for path in Path("/usr/sbin").glob("php-fpm*"))[-1:] or ["php-fpm"]


@contextmanager
def all_started(*servers: ReceiverServer) -> Iterator[None]:
    """The servers, started beside each other; all have ended afterwards."""
    with ExitStack() as ends:
        for server in servers:
            ends.callback(server.close)
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(lambda server: server.start(), servers))
        yield
