"""Where a number comes from."""

import pytest

from segzoo import cores, provenance


@pytest.fixture(autouse=True)
def not_remembered():
    cores.has_wide_registers.cache_clear()
    yield
    cores.has_wide_registers.cache_clear()


@pytest.mark.parametrize(
    ("told", "device"),
    [
        ("model\t: 1\nmodel name\t: A: CPU\nmodel name\t: A: CPU\n", "({} cores, A: CPU)"),
        ("model name\t: A: CPU\nflags\t: fpu avx512f\n", "({} cores, A: CPU, AVX-512)"),
        ("Processor\t: 0\n", "({} cores)"),  # as on ARM
    ],
)
def test_a_cpu_is_told_with_its_name_where_it_has_one(tmp_path, monkeypatch, told, device):
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(cores, "_CPUINFO", tmp_path / "cpuinfo")
    assert provenance.device().endswith("x CPU " + device.format(provenance.usable_cores()))


def test_elsewhere_python_knows_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(provenance.platform, "processor", lambda: "arm")
    assert provenance.device().endswith(" cores, arm)")
