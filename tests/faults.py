"""Faults that are injected for real: packets that are dropped, processes that stand still, disks that are full."""

import os
import shutil
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def dropped_packets(port: int) -> Generator[None]:
    """In the block no packet reaches a port of this machine or comes from it, and nobody is told. Skips without rights.

    See iptables(8): connections that are there stay, half open.
    """
    iptables = shutil.which("iptables") or shutil.which("iptables", path="/usr/sbin:/sbin")
    if iptables is None:
        pytest.skip("no iptables is installed (Debian: iptables)")
    rules = [["OUTPUT", "-o", "lo", "-p", "tcp", f"--{side}port", str(port), "-j", "DROP"] for side in ("d", "s")]
    added: list[list[str]] = []
    try:
        for rule in rules:
            answer = subprocess.run([iptables, "-w", "-I", *rule], check=False, capture_output=True, text=True)
            if answer.returncode != 0:
                pytest.skip(f"no packets may be dropped here: {answer.stderr.strip()[:200]}")
            added.append(rule)
        yield
    finally:
        for rule in added:
            subprocess.run([iptables, "-w", "-D", *rule], check=True, capture_output=True)


@contextmanager
def stopped(pid: int) -> Generator[None]:
    """In the block a process stands still: its connections are taken by the kernel, and nothing is answered."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def small_disk(folder: Path, *, mib: int) -> Generator[Path]:
    """A disk of so many MiB, mounted at ``folder``. Skips without rights."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", str(folder)]
    answer = subprocess.run(mount, check=False, capture_output=True, text=True)
    if answer.returncode != 0:
        pytest.skip(f"no disk may be mounted here: {answer.stderr.strip()[:200]}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


@contextmanager
def full_disk(folder: Path) -> Generator[None]:
    """In the block the disk of a folder, which should be a small one, has no room left."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass
            try:
                while True:
                    file.write(b"x")
            except OSError:
                pass
        yield
    finally:
        ballast.unlink(missing_ok=True)


def faketime_library() -> Path:
    """The library that gives a process a clock of its own. Skips without it. See faketime(1)."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("no libfaketime is installed (Debian: faketime)")
    return found[0]
