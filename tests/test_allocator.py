"""Memory that a process keeps."""

import os
import subprocess
import sys

import pytest

from segzoo import allocator

# Frees and takes 64 MB, from another thread than the first as XLA does; prints the faults of a
# round once the first has passed.
PROGRAM = """
import resource, threading
from segzoo.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def work():
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        b"1" * 64_000_000
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(max(faults[1:]))
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def faults(keep):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={name: value for name, value in os.environ.items() if name != "SEGZOO_KEEP_MEMORY"},
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc of Linux")
def test_what_is_freed_is_not_taken_from_the_system_again():
    assert faults(keep=True) < 1000
    assert faults(keep=False) > 1000  # 64 MB are 15,625 pages


def test_the_environment_forbids_it(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("was asked for"))
    monkeypatch.setenv("SEGZOO_KEEP_MEMORY", "0")
    assert allocator.keep_freed_memory() is False


def test_elsewhere_nothing_is_set(monkeypatch):
    monkeypatch.delenv("SEGZOO_KEEP_MEMORY")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("was asked for"))
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.keep_freed_memory() is False


def test_another_c_library_has_no_such_setting(monkeypatch):
    monkeypatch.delenv("SEGZOO_KEEP_MEMORY")
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert allocator.keep_freed_memory() is False
