"""RoIAlign against a loop over bins and points, and the gradient against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.ops import roi_align as module
from segzoo.ops.roi_align import assign_levels

roi_align = jax.jit(module.roi_align, static_argnums=(2, 3), static_argnames=("samples", "aligned"))


def interpolated(feature, y, x):
    height, width = feature.shape[:2]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(feature.shape[-1])
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    v, u = y - y0, x - x0
    upper = (1 - u) * feature[y0, x0] + u * feature[y0, x1]
    lower = (1 - u) * feature[y1, x0] + u * feature[y1, x1]
    return (1 - v) * upper + v * lower


def by_loops(feature, box, stride, size, samples, aligned):
    first = box[:2] / stride - (0.5 if aligned else 0)
    extent = (box[2:] - box[:2]) / stride
    extent = extent if aligned else np.maximum(extent, 1)
    result = np.zeros((size, size, feature.shape[-1]))
    for i, j in np.ndindex(size, size):
        for a, b in np.ndindex(samples, samples):
            y = first[0] + extent[0] * (i + (a + 0.5) / samples) / size
            x = first[1] + extent[1] * (j + (b + 0.5) / samples) / size
            result[i, j] += interpolated(feature, y, x) / samples**2
    return result


# Inside, over all borders, a corner outside, thin, without area, at the end, far away.
BOXES = [
    [3.0, 5.0, 17.0, 31.0],
    [-6.0, -9.0, 70.0, 80.0],
    [44.0, 60.0, 60.0, 75.0],
    [10.0, 8.0, 10.5, 30.0],
    [20.0, 20.0, 20.0, 20.0],
    [47.0, 63.0, 48.0, 64.0],
    [200.0, 300.0, 210.0, 310.0],
    [0.0, 0.0, 48.0, 64.0],
]


def levels(rng, batch=2, channels=3):
    return [
        rng.normal(size=(batch, 48 // stride, 64 // stride, channels)).astype(np.float32)
        for stride in (4, 8)
    ]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("size", "samples"), [(7, 2), (3, 1), (2, 3)])
def test_it_is_the_mean_of_interpolated_points(aligned, size, samples):
    rng = np.random.default_rng(0)
    features = levels(rng)
    boxes = np.stack([BOXES, BOXES[::-1]]).astype(np.float32)
    level = rng.integers(0, 2, size=boxes.shape[:2])
    pooled = roi_align(
        features, jnp.asarray(boxes), (4, 8), size, level=level, samples=samples, aligned=aligned
    )
    for image, number in np.ndindex(boxes.shape[:2]):
        which = level[image, number]
        expected = by_loops(
            features[which][image], boxes[image, number], (4, 8)[which], size, samples, aligned
        )
        np.testing.assert_allclose(pooled[image, number], expected, atol=2e-5)


def test_a_linear_ramp_is_read_off_at_the_centres_of_the_bins():
    y, x = np.mgrid[:20, :30].astype(np.float32)
    ramp = jnp.asarray(np.stack([y, x], axis=-1)[None])
    pooled = roi_align([ramp], jnp.asarray([[[8.0, 16.0, 64.0, 72.0]]]), (4,), 7)
    centers = 2 + 2 * (np.arange(7) + 0.5)
    np.testing.assert_allclose(pooled[0, 0, :, 0, 0], centers, atol=1e-5)
    np.testing.assert_allclose(pooled[0, 0, 0, :, 1], centers + 2, atol=1e-5)


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_gradient_by_differences(monkeypatch, everywhere):
    """On CPU and elsewhere it is computed in two ways; the function is linear."""
    if everywhere:
        monkeypatch.setattr(module.jax, "default_backend", lambda: "gpu")
    rng = np.random.default_rng(1)
    features = [jnp.asarray(f) for f in levels(rng)]
    boxes = jnp.asarray([BOXES, BOXES[::-1]])
    level = rng.integers(0, 2, size=boxes.shape[:2])
    weight = jnp.asarray(rng.normal(size=(*boxes.shape[:2], 3, 3, 3)), jnp.float32)

    def function(features):
        return jnp.sum(weight * roi_align(features, boxes, (4, 8), 3, level=level))

    gradients = jax.jit(jax.grad(function))(features)
    for _ in range(3):
        step = [jnp.asarray(rng.normal(size=f.shape), jnp.float32) for f in features]
        change = function(jax.tree.map(jnp.add, features, step)) - function(features)
        told = sum(jnp.vdot(g, s) for g, s in zip(gradients, step, strict=True))
        np.testing.assert_allclose(told, change, rtol=1e-3, atol=1e-3)


def test_boxes_have_no_gradient_and_half_precision_stays():
    features = [jnp.asarray(f, jnp.bfloat16) for f in levels(np.random.default_rng(2))]
    boxes = jnp.asarray([BOXES, BOXES])
    pooled = roi_align(features, boxes, (4, 8), 7)
    assert pooled.dtype == jnp.bfloat16
    full = roi_align([f.astype(jnp.float32) for f in features], boxes, (4, 8), 7)
    np.testing.assert_allclose(pooled.astype(jnp.float32), full, rtol=0.01, atol=1e-6)
    gradient = jax.grad(lambda b: jnp.sum(roi_align(features, b, (4, 8), 7)).astype(jnp.float32))
    assert not np.any(gradient(boxes))


def test_levels_are_equation_1():
    sides = [1, 111, 112, 223, 224, 447, 448, 4000]
    square = jnp.asarray([[0.0, 0.0, side, side] for side in sides])
    assert assign_levels(square).tolist() == [2, 2, 3, 3, 4, 4, 5, 5]
    assert assign_levels(square, 3, 4).tolist() == [3, 3, 3, 3, 4, 4, 4, 4]
    long, nothing = [0.0, 0.0, 56.0, 896.0], [5.0, 5.0, 5.0, 5.0]
    assert assign_levels(jnp.asarray([long, nothing])).tolist() == [4, 2]
