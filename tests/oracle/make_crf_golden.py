"""Writes tests/goldens/dense_crf.npz: marginals of the authors' C++ code (pydensecrf2).

python tests/oracle/make_crf_golden.py
"""

from pathlib import Path

import numpy as np
import pydensecrf.densecrf as cpp

MODES = {
    "none": cpp.NO_NORMALIZATION,
    "before": cpp.NORMALIZE_BEFORE,
    "after": cpp.NORMALIZE_AFTER,
    "symmetric": cpp.NORMALIZE_SYMMETRIC,
}
TARGET = Path(__file__).parents[1] / "goldens" / "dense_crf.npz"


def scene(rng, size, channels, classes):
    """Soft blobs of colour with noise, and noisy logits of the blob each pixel is in."""
    grid = np.indices(size).reshape(len(size), -1).T
    centers = rng.uniform(0, size, (2 * classes, len(size)))
    nearest = np.argmin(((grid[:, None] - centers) ** 2).sum(-1), axis=1)
    colors = rng.uniform(40, 215, (2 * classes, channels))
    image = np.clip(colors[nearest] + rng.normal(0, 6, (len(grid), channels)), 0, 255)
    truth = np.eye(classes)[nearest % classes]
    logits = (1.5 * truth + rng.normal(size=truth.shape)).astype(np.float16)
    return image.astype(np.uint8), logits


def solve(unary, features, weights, mode, compatibility=None):
    """Returns the marginals `[N, K]` after ten iterations."""
    crf = cpp.DenseCRF(*unary.shape)
    crf.setUnaryEnergy(np.ascontiguousarray(-unary.T.astype(np.float32)))
    for feature, weight in zip(features, weights, strict=True):
        compat = weight if compatibility is None else (weight * compatibility).astype(np.float32)
        feature = np.ascontiguousarray(feature.T, np.float32)
        crf.addPairwiseEnergy(feature, compat, cpp.CONST_KERNEL, mode)
    return np.array(crf.inference(10)).T


def compute():
    """Solves a picture and a volume of one channel, in every mode and with a full matrix."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, size, channels, classes in (
        ("picture", (32, 48), 3, 5),
        ("volume", (8, 16, 24), 1, 3),
    ):
        image, logits = scene(rng, size, channels, classes)
        place = np.indices(size).reshape(len(size), -1)[::-1].T
        features = [place / 3, np.concatenate([place / 20, image / 8], axis=1)]
        arrays[f"{name}_image"] = image.reshape(*size, channels)
        arrays[f"{name}_logits"] = logits.reshape(*size, classes)
        for mode, number in MODES.items():
            # Sums that are not normalised are large: small weights keep the marginals soft.
            weights = (0.02, 0.02) if mode == "none" else (3, 4)
            marginals = solve(logits, features, weights, number)
            arrays[f"{name}_{mode}"] = marginals.reshape(*size, classes).astype(np.float16)
        half = rng.uniform(0, 1, (classes, classes))
        matrix = ((half + half.T) * (1 - np.eye(classes))).astype(np.float32)
        marginals = solve(logits, features, (3, 4), MODES["symmetric"], matrix)
        arrays[f"{name}_matrix"] = matrix
        arrays[f"{name}_compatibility"] = marginals.reshape(*size, classes).astype(np.float16)
    return arrays


if __name__ == "__main__":
    np.savez_compressed(TARGET, **compute())
