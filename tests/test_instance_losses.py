"""The five losses by hand, and their sum on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.instance_losses import BETA, TERMS, terms, total


def answers(seed=0, images=2, garbage=0.0):
    """Made-up answers; `garbage` stands wherever nothing was sampled."""
    rng = np.random.default_rng(seed)

    def group(places, classes):
        valid = np.arange(places) < rng.integers(1, places, size=(images, 1))
        shape = (images, places, classes) if classes else (images, places)
        there = {"logits": rng.normal(size=shape), "offsets": rng.normal(size=(images, places, 4))}
        there["target"] = there["offsets"] + rng.normal(size=(images, places, 4)) * 0.2
        for value in there.values():
            value[~valid] = garbage
        return {**there, "valid": valid}

    anchors, regions = group(12, 0), group(10, 5)
    anchors["positive"] = anchors["valid"] & (np.arange(12) < 2)
    label = np.where(regions["valid"] & (np.arange(10) < 4), rng.integers(1, 5, (images, 10)), 0)
    logits = rng.normal(size=(images, 4, 6, 6))
    logits[label[:, :4] == 0] = garbage
    masks = {"logits": logits, "target": rng.random((images, 4, 6, 6)), "valid": label[:, :4] > 0}
    found = {"anchors": anchors, "regions": {**regions, "label": label}, "masks": masks}
    return jax.tree.map(lambda x: jnp.asarray(x, x.dtype if x.dtype == bool else None), found)


def binary(logit, target):
    share, target = 1 / (1 + np.exp(-logit.astype(np.float64))), target.astype(np.float64)
    return -target * np.log(share) - (1 - target) * np.log(1 - share)


def smooth(error):
    error = np.abs(error)
    return np.where(error < BETA, error**2 / (2 * BETA), error - BETA / 2).sum()


def test_the_formulas():
    found = jax.device_get(answers())
    anchors, regions, masks = found["anchors"], found["regions"], found["masks"]
    sampled, kept = anchors["valid"], regions["valid"]
    logits = regions["logits"][kept].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    right = shares[np.arange(len(shares)), regions["label"][kept]]
    cells = masks["valid"].sum() * 36
    expected = {
        "objectness": (binary(anchors["logits"], anchors["positive"])[sampled].sum(), sampled),
        "proposal": (
            smooth((anchors["offsets"] - anchors["target"])[anchors["positive"]]),
            sampled,
        ),
        "class": (-np.log(right).sum(), kept),
        "box": (smooth((regions["offsets"] - regions["target"])[regions["label"] > 0]), kept),
        "mask": (binary(masks["logits"], masks["target"])[masks["valid"]].sum(), np.ones(cells)),
    }
    scored = jax.jit(terms)(answers())
    assert tuple(expected) == TERMS
    assert scored.keys() == expected.keys()
    for name, (value, counted) in expected.items():
        np.testing.assert_allclose(scored[name][0], value, rtol=1e-5, err_msg=name)
        assert scored[name][1] == counted.sum(), name


@pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf])
def test_what_was_not_sampled_adds_nothing_and_has_no_gradient(garbage):
    def objective(found):
        return total(terms(found), 2)[0]

    run = jax.jit(jax.value_and_grad(objective, allow_int=True))
    clean, strange = answers(), answers(garbage=garbage)
    (value, gradient), (other, others) = run(clean), run(strange)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    for group in ("anchors", "regions", "masks"):
        for name in {"logits", "offsets"} & gradient[group].keys():
            a, b = gradient[group][name], others[group][name]
            np.testing.assert_allclose(a, b, atol=1e-7)
            assert np.any(a != 0)


def test_the_sum_is_that_of_the_means_and_of_weights():
    scored = {
        "class": (jnp.float32(6.0), jnp.float32(3.0)),
        "box": (jnp.float32(1.0), jnp.zeros(())),
    }
    value, count = total(scored, 4)
    assert (float(value / count), float(count)) == (3.0, 4.0)
    value, count = total(scored, 4, weights={"class": 0.5})
    assert float(value / count) == 2.0


def test_shares_of_a_batch_add_up():
    """Four shares with counts of their own, under an axis, against all of them at once."""
    whole = answers(images=4)
    shares = jax.tree.map(lambda x: x.reshape(4, 1, *x.shape[1:]), whole)

    def share(found):
        value, count = total(terms(found), 1, "devices")
        return jax.lax.psum(value, "devices") / jax.lax.psum(count, "devices")

    together = total(terms(whole), 4)
    found = jax.vmap(share, axis_name="devices")(shares)
    np.testing.assert_allclose(found, together[0] / together[1], rtol=1e-6)
    assert together[1] == 4


def test_nothing_sampled_is_a_finite_zero():
    found = answers()
    for group, name in (("anchors", "valid"), ("regions", "valid"), ("masks", "valid")):
        found[group][name] = jnp.zeros_like(found[group][name])
    value, count = total(terms(found), 2)
    assert (float(value), float(count)) == (0.0, 2.0)
