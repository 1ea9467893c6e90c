"""How many cores may be used, and how they are shared out."""

from __future__ import annotations

import os

import pytest

from marcorank._inference import cpu
from marcorank._inference.cpu import Workers, usable_cores


@pytest.fixture
def limited(tmp_path, monkeypatch):
    """Make the process see control groups under a folder of the test."""

    def limit(own, **files):
        (tmp_path / "own").write_text(own)
        for name, content in files.items():
            path = tmp_path / "root" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return cpu._cgroup_quota(tmp_path / "root", tmp_path / "own")

    return limit


def test_a_limit_of_version_2_counts(limited):
    """`docker run --cpus 1.5` writes a quota and its period into one file."""
    assert limited("0::/\n", **{"cpu.max": "150000 100000\n"}) == 1.5


def test_no_limit_is_none(limited):
    """The word `max` means that there is none."""
    assert limited("0::/\n", **{"cpu.max": "max 100000\n"}) is None


def test_the_limit_of_a_parent_binds_too(limited):
    """The least of all limits from the process up to the root counts."""
    files = {"a__b__cpu.max": "max 100000\n", "a__cpu.max": "200000 100000\n", "cpu.max": "400000 100000\n"}
    assert limited("0::/a/b\n", **files) == 2


def test_a_container_sees_its_own_limit_at_the_mount(limited):
    """The path of the process is the host's, and may not exist below what the container sees."""
    assert limited("0::/docker/abc\n", **{"cpu.max": "300000 100000\n"}) == 3


def test_a_limit_of_version_1_counts(limited):
    """Older systems have a file each for quota and period, below the controller's folder."""
    files = {"cpu,cpuacct__job__cpu.cfs_quota_us": "50000\n", "cpu,cpuacct__job__cpu.cfs_period_us": "100000\n"}
    assert limited("4:memory:/job\n3:cpu,cpuacct:/job\n", **files) == 0.5


def test_minus_one_is_no_limit_in_version_1(limited):
    """A quota of -1 means that there is none."""
    assert limited("1:cpu:/\n", **{"cpu__cpu.cfs_quota_us": "-1\n", "cpu__cpu.cfs_period_us": "100000\n"}) is None


@pytest.mark.parametrize("content", ["", "x y\n", "1\n", "100000 0\n", "\n\n"])
def test_what_cannot_be_read_is_no_limit(limited, content):
    """An odd file is as good as none."""
    assert limited("0::/\nnonsense\n", **{"cpu.max": content}) is None


def test_a_system_without_control_groups_has_no_limit(tmp_path):
    """Where the files are missing, affinity alone decides."""
    assert cpu._cgroup_quota(tmp_path / "root", tmp_path / "own") is None


@pytest.mark.parametrize(("quota", "expected"), [(0.2, 1), (1.0, 1), (None, None), (1000.0, None)])
def test_the_least_limit_decides(monkeypatch, quota, expected):
    """A quota is rounded up to whole cores, at least one, and never gives more than there are."""
    monkeypatch.setattr(cpu, "_cgroup_quota", lambda: quota)
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert usable_cores() == (there if expected is None else min(expected, there))


@pytest.mark.parametrize(("threads", "count", "all_threads"), [(1, 1, 1), (2, 2, 2), (8, 8, 8), (9, 8, 9), (64, 8, 64)])
def test_cores_are_shared_out(threads, count, all_threads):
    """A batch a core, and beyond eight batches more cores each."""
    assert Workers.of(threads) == Workers(count, all_threads)


def test_without_a_number_all_usable_cores_work():
    """None means a thread a core."""
    assert Workers.of(None).threads == usable_cores()
