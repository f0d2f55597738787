"""A machine of its own for a test: this one's files under a layer that is thrown away, and a real systemd as process 1.

It has its own processes, network, host name and cgroups; nothing that happens there reaches the files of this machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import peers
import psutil
import pytest

ROOT = Path(__file__).parents[1]
SYSTEMD = Path("/lib/systemd/systemd")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Services of this machine that the test does not ask for, and what would touch the kernel that both share.
WITHOUT = (
    "orthanc.service", "prometheus.service", "apt-daily.timer", "apt-daily-upgrade.timer", "systemd-sysctl.service",
    "systemd-modules-load.service", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount",
)  # fmt: skip
BOOT = r"""
set -eu
layer=$1 base=$2 packages=$3 source=$4
shift 4
mount --make-rprivate /
mount -t tmpfs tmpfs "$layer"
mkdir "$layer/upper" "$layer/work" "$layer/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$layer/upper,workdir=$layer/work" "$layer/root"
cd "$layer/root"
mkdir -p opt/python opt/packages opt/source
mount --bind "$base" opt/python
mount --bind "$packages" opt/packages
mount --bind "$source" opt/source
for unit; do ln -sf /dev/null "etc/systemd/system/$unit"; done
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
  touch "dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p old
pivot_root . old
umount -l old
echo /opt/python/lib >/etc/ld.so.conf.d/00-python.conf # a Python with a library of its own looks for it where it was
ldconfig
exec env -i container=test "PATH=$PATH" /lib/systemd/systemd
"""


class Machine:
    """A booted machine; `root` is its root folder, seen from here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def run(self, *command: str, accepted: tuple[int, ...] = (0,), **environment: str) -> str:
        """Run a command there and return what it prints."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
        done = subprocess.run(
            [*enter, *command],
            env={"PATH": PATH, "LANG": "C.UTF-8"} | environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode in accepted, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def shows(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def install(self, folder: str) -> None:
        """Put there what `pip install` would: an environment, here with the packages and source of this one."""
        home = self.root / folder.lstrip("/")
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = home / "lib" / python / "site-packages"
        for made in (site, home / "bin"):
            made.mkdir(parents=True)
        (home / "pyvenv.cfg").write_text("home = /opt/python/bin\ninclude-system-site-packages = false\n")
        (home / "bin/python").symlink_to(f"/opt/python/bin/{python}")
        (site / "here.pth").write_text("/opt/source/src\n/opt/packages\n")
        program = home / "bin/wetread"
        program.write_text(
            f"#!{folder}/bin/python\nfrom wetread.cli import main\n\nif __name__ == '__main__':\n    main()\n"
        )
        program.chmod(0o755)


def _refused(reason: str) -> NoReturn:
    """Expect nothing where the kernel refuses: nothing that could be installed would help, so it is no skip."""
    pytest.xfail(f"no machine of its own: {reason}")


@contextmanager
def machine() -> Iterator[Machine]:
    """Boot a machine, and switch it off."""
    for needed, package in (("unshare", "util-linux"), ("nsenter", "util-linux"), (str(SYSTEMD), "systemd")):
        if shutil.which(needed) is None:
            pytest.skip(f"needs {needed}: apt-get install -y {package}")
    if os.getuid() != 0:
        _refused("only root may boot a machine of its own")
    spaces = ["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup"]
    if subprocess.run(
        ["unshare", *spaces, "mount", "--make-rprivate", "/"], capture_output=True, check=False
    ).returncode:
        _refused("the kernel gives no namespaces (CAP_SYS_ADMIN)")
    layer = Path(tempfile.mkdtemp(prefix="wetread-machine-"))
    packages = sysconfig.get_path("purelib")
    with (layer / "said").open("w+") as said:
        process = subprocess.Popen(
            ["unshare", *spaces, "sh", "-c", BOOT, "boot", layer, sys.base_prefix, packages, ROOT, *WITHOUT],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={"PATH": PATH},
        )  # fmt: skip
        try:

            def started() -> Machine | None:
                said.seek(0)
                if process.poll() is not None:
                    told = said.read()
                    if re.search(r"mount|pivot_root|denied|not permitted", told):
                        _refused(told.strip().splitlines()[-1])
                    raise AssertionError(told)
                found = psutil.Process(process.pid).children()
                return Machine(found[0].pid) if found and found[0].exe() == str(SYSTEMD.resolve()) else None

            booted = peers.wait(started, "systemd")
            state = ("is-system-running", "--wait")
            peers.wait(lambda: (booted.root / "run/systemd/private").exists(), "systemd's socket")
            booted.run("systemctl", *state, accepted=(0, 1))  # 1: degraded, by a service that is not ours
            yield booted
        finally:
            process.kill()  # and by --kill-child everything there, its mounts with it
            process.wait(60)
            shutil.rmtree(layer)
