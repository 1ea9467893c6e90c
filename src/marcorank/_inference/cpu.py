"""What the processor can do, read without any package."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# As many as keep a request of 20 passages of mixed lengths evenly spread.
_MOST_AT_ONCE = 8
_INTERESTING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """Return the instruction sets that matter here, named as in Linux's /proc/cpuinfo, and `arm64`.

    Empty where the system does not tell (Windows and macOS on x86); the portable files are taken then.
    """
    if platform.machine().lower() in {"arm64", "aarch64"}:
        return frozenset({"arm64"})
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return frozenset(flags).intersection(_INTERESTING)


def processor_name() -> str:
    """Return the processor's name as the system shows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def usable_cores() -> int:
    """Return how many cores this process may keep busy: containers and job schedulers often grant fewer than there are.

    The least of what the scheduler lets it run on (affinity, cpusets) and of the container's CPU limit (cgroup quota,
    rounded up), at least 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return cores if quota is None else max(min(cores, math.ceil(quota)), 1)


@dataclass(frozen=True, slots=True)
class Workers:
    """How the cores are shared out among batches that run at once.

    Attributes:
        count: Batches at once.
        threads: Threads of all of them together.
    """

    count: int
    threads: int

    @classmethod
    def of(cls, threads: int | None) -> Workers:
        """Share out this many threads; None for a thread a core.

        One core a batch wastes nothing on waiting for one another. Beyond that many batches, a request of 20
        passages would leave cores idle at its end, and they get more threads each.
        """
        threads = usable_cores() if threads is None else threads
        return cls(min(threads, _MOST_AT_ONCE), threads)


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the CPU limit of the container in cores, None where there is none or the system does not tell.

    Source: the kernel's cgroup-v2.rst (`cpu.max`) and sched-bwc.rst (`cpu.cfs_quota_us`).
    """
    try:
        entries = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return None
    quotas: list[float] = []
    for _, controllers, path in (entry for entry in entries if len(entry) == 3):
        if controllers == "":
            mounts = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "cpu", root / controllers, root]
        else:
            continue
        for mount in mounts:
            # A limit of a parent binds too. Inside a container the own path may not exist below the mount.
            folder = mount / path.lstrip("/")
            while True:
                quota = _quota_in(folder)
                if quota is not None:
                    quotas.append(quota)
                if folder == mount:
                    break
                folder = folder.parent
    return min(quotas, default=None)


def _quota_in(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 < int(period) else None
    except (OSError, ValueError):
        return None
