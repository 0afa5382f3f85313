"""The goldens are what the other libraries give today, and our whole feature maps are theirs."""

import json

import parity
import pytest

# It imports torch, torchvision and timm.
make_goldens = pytest.importorskip("make_goldens", reason="the extra `oracle` is not installed")

CASES = [
    pytest.param(
        case, id=case.name, marks=pytest.mark.slow if case.quick else pytest.mark.exhaustive
    )
    for case in parity.CASES
]


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    pytest.importorskip(case.library)
    golden = parity.Golden.read(parity.golden_path(case))
    fresh, worst = make_goldens.compare(case, golden.variances)
    assert max(worst.values()) <= parity.TOLERANCE
    assert golden.reference == fresh.reference
    assert golden.names == fresh.names
    assert golden.outputs.keys() == fresh.outputs.keys()
    for size, outputs in golden.outputs.items():
        errors = parity.errors(fresh.outputs[size], outputs)
        # Not zero: another processor may sum in another order.
        assert max(errors.values()) <= parity.TOLERANCE, (size, errors)


def test_record():
    record = json.loads(make_goldens.RECORD.read_text())
    assert record.keys() == make_goldens.describe().keys() | {"models", "stages"}
    assert list(record["models"]) == [case.name for case in parity.CASES]
    for case in parity.CASES:
        row = record["models"][case.name]
        assert row["reference"] == parity.Golden.read(parity.golden_path(case)).reference
        assert row["sizes"] == [list(size) for size in case.sizes]
        assert 0 <= max(row["logits"], row["stages"]) <= parity.TOLERANCE
