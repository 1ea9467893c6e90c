"""CPU features, cores and container limits, read without extra packages."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# With more, a request of 20 passages of mixed lengths would not be spread evenly.
_MAX_PARALLEL_BATCHES = 8
_RELEVANT_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """Return the relevant instruction sets, named as in /proc/cpuinfo of Linux, or `arm64`.

    Empty if the system does not list them (Windows and macOS on x86); portable model files are used then.
    """
    if platform.machine().lower() in {"arm64", "aarch64"}:
        return frozenset({"arm64"})
    return frozenset(_cpuinfo("flags").split()).intersection(_RELEVANT_FEATURES)


def processor_name() -> str:
    """Return the name of the processor as the system reports it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo; "" if the system does not have it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def usable_cores() -> int:
    """Return the number of cores that this process may use, which containers and job schedulers often limit.

    The smaller of the CPU affinity (with cpusets) and the CPU limit of the container (cgroup quota, rounded up), at
    least 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return cores if quota is None else max(min(cores, math.ceil(quota)), 1)


@dataclass(frozen=True, slots=True)
class Workers:
    """How the threads are divided among parallel batches.

    Attributes:
        count: Number of batches that run in parallel.
        threads: Total number of threads.
    """

    count: int
    threads: int

    @classmethod
    def of(cls, threads: int | None) -> Workers:
        """Divide this number of threads; None for one thread per core.

        One thread per batch has no synchronisation cost. With more than 8 parallel batches, a request of 20 passages
        would leave cores idle at its end, so beyond that each batch gets more threads.
        """
        threads = usable_cores() if threads is None else threads
        return cls(min(threads, _MAX_PARALLEL_BATCHES), threads)


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the CPU limit of the container in cores; None if there is no limit or it cannot be read.

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
            # The limits of parent groups apply too. In a container, the path may not exist under the mount.
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
