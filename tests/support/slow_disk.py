"""A disk that takes no writes for a minute: what is preloaded into a process to have
its calls of fsync hang while a file is there."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static int synced(const char *name, int fd) {
    const char *hangs = getenv("TEST_DISK_HANGS");
    if (hangs && access(hangs, F_OK) == 0)
        for (unsigned left = 60; left; left = sleep(left)) /* no signal ends it */;
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}
int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }
"""


class SlowDisk:
    """See the module.

    Attributes:
        environ: what a process is started with.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._relay = folder / "hangs"
        source, library = folder / "disk.c", folder / "disk.so"
        source.write_text(_SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.environ = {"LD_PRELOAD": str(library), "TEST_DISK_HANGS": str(self._relay)}

    def hang(self) -> None:
        """From here on, what is synced hangs."""
        self._relay.touch()
