"""The golden of Mask R-CNN is what torchvision gives today, and so are our values."""

import mask_rcnn_parity as shared
import pytest

# It imports torch and torchvision.
maker = pytest.importorskip("make_mask_rcnn_golden", reason="the extra `oracle` is not installed")


@pytest.mark.slow
def test_golden_is_what_torchvision_gives():
    variances, golden = shared.read()
    _, fresh, worst, _ = maker.compute(variances)
    assert max(worst.values()) <= shared.TOLERANCE, worst
    for size, digest in fresh.items():
        assert max(shared.errors(digest, golden[size]).values()) <= shared.TOLERANCE
