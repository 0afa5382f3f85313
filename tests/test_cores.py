"""What the processor tells of itself."""

import pytest

from segzoo import cores


@pytest.mark.parametrize(
    ("told", "wide"),
    [
        ("model name\t: A\nflags\t\t: fpu avx2 avx512f avx512bw\n", True),
        ("model name\t: avx512f\nflags\t\t: fpu avx2\n", False),
        ("Features\t: fp asimd\n", False),  # as on ARM
        (None, False),
    ],
)
def test_width_of_registers(tmp_path, monkeypatch, told, wide):
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(cores, "_CPUINFO", tmp_path / "cpuinfo")
    assert cores.has_wide_registers.__wrapped__() is wide
