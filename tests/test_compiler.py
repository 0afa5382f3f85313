"""What compiling leaves out."""

import gc
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from segzoo import compiler

# LLVM's options are read where they are given before the first device is asked for.
PROGRAM = """
from segzoo import compiler
import jax
compiler._LLVM_OPTIONS = "{options}"
assert compiler.compile_sooner()
assert not compiler.compile_sooner()
print(jax.jit(lambda x: x + 1)(1.0))
"""


@pytest.fixture(autouse=True)
def as_it_was():
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)


def run(options):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(options=options)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    )


def test_the_compiler_takes_the_option():
    done = run(compiler._LLVM_OPTIONS)
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr
    assert "-no-such-option" in run("-no-such-option").stderr  # so it reads them


def test_other_flags_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    assert compiler.compile_sooner()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == [
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_extra_options=-disable-lsr",
    ]


def test_options_for_llvm_that_are_there_stay(monkeypatch):
    flags = "--xla_backend_extra_options=-some-option"
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert not compiler.compile_sooner()
    assert os.environ["XLA_FLAGS"] == flags


@pytest.mark.parametrize(
    ("platforms", "installed", "alone"),
    [
        ("cpu", "jax_plugins", True),
        ("cuda,cpu", None, False),
        (None, None, True),
        (None, "jax_plugins", False),
        (None, "libtpu", False),
    ],
)
def test_where_other_devices_may_be_nothing_is_set(monkeypatch, platforms, installed, alone):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "config", SimpleNamespace(jax_platforms=platforms))
    monkeypatch.setattr(compiler.importlib.metadata, "entry_points", lambda group: ())
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: name == installed)
    assert compiler.compile_sooner() is alone
    assert bool(os.environ["XLA_FLAGS"]) is alone


def test_a_plugin_by_its_entry_point_counts(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "config", SimpleNamespace(jax_platforms=None))
    monkeypatch.setattr(compiler.importlib.metadata, "entry_points", lambda group: [group])
    assert not compiler.compile_sooner()


@pytest.mark.parametrize(("before", "after"), [(700, 10_000), (50_000, 50_000), (0, 0)])
def test_garbage_is_looked_for_less_often(monkeypatch, before, after):
    monkeypatch.setenv("XLA_FLAGS", "")
    gc.set_threshold(before, 11, 12)
    compiler.compile_sooner()
    assert gc.get_threshold() == (after, 11, 12)
