"""Memory that a process keeps."""

import os
import subprocess
import sys

import pytest

from segzoo import allocator

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc of Linux")

# Computes on 64 MB, jax imported before or after; prints the faults
# of a usual call: now and then a block is still held from the one
# before, and a place for one more is taken, once.
PROGRAM = """
import resource, statistics
{first}
{second}
import jax, jax.numpy as jnp
step = jax.jit(lambda x: x.cumsum()[::-1] + x)
x = jnp.arange(16_000_000.0)
faults = []
for _ in range(15):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(statistics.median(faults)))
"""
KEEP = "from segzoo.allocator import keep_freed_memory; assert keep_freed_memory()"

# Frees 64 MB in blocks that stay with malloc, compiles twice, the second time
# long by another measure; prints what was resident before each and in the end.
COMPILE = """
import ctypes
{first}
import jax
from segzoo import allocator
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) // 256
jax.jit(lambda x: x + 1)(1.0)
blocks = [libc.malloc(100_000) for _ in range(640)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
for block in blocks:
    libc.free(block)
found = [resident()]
for number in (2, 3):
    jax.jit(lambda x: x * number)(1.0)
    found.append(resident())
    allocator._LONG = 0
print(*found)
"""


def faults(first, second):
    return int(run(PROGRAM.format(first=first, second=second)))


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        # One device and a thread for each core, as a program has that did not ask for more.
        env={
            name: value
            for name, value in os.environ.items()
            if name not in ("SEGZOO_KEEP_MEMORY", "XLA_FLAGS", "NPROC")
        },
    )
    return done.stdout


@on_linux
def test_what_is_freed_is_not_taken_from_the_system_again():
    assert faults(KEEP, "import jax") < 2000
    assert faults("import jax", KEEP) < 2000
    assert faults("", "") > 10_000  # 64 MB are 15,625 pages


@on_linux
def test_what_a_long_compilation_leaves_goes_back():
    freed, short, long = map(int, run(COMPILE.format(first=KEEP)).split())
    assert short > freed - 10
    assert long < freed - 40


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
