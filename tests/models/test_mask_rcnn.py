"""Mask R-CNN: what docs/architecture.md promises of instance models, and what the papers say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import segzoo
from segzoo import SegzooError, instance_losses
from segzoo.cost import measure
from segzoo.models.fpn import FPN
from segzoo.models.mask_rcnn import MaskRCNN
from segzoo.models.roi_heads import detect
from segzoo.models.rpn import propose, pyramid_anchors
from segzoo.ops.masks import paste_masks

SMALL = {
    "width": 4,
    "num_classes": 4,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "proposals": (40, 50),
    "training_proposals": (40, 50),
    "anchors_learned": 32,
    "regions_learned": 32,
    "score_threshold": 0.0,
    "detections": 12,
}
SIZE = (75, 97)
ALL = np.full((2, 2), SIZE)


def build(**overrides) -> MaskRCNN:
    return segzoo.get("mask_rcnn_resnet50_fpn", **{**SMALL, **overrides})


def draw_images(batch=2, size=SIZE, seed=0):
    values = np.random.default_rng(seed).normal(size=(batch, *size, 3))
    return jnp.asarray(values, jnp.float32)


def targets(batch=2, places=3, size=SIZE):
    """No object in the last image; in the others one inside, one over all borders, one a point."""
    height, width = size
    boxes = np.zeros((batch, places, 4), np.float32)
    boxes[:, :3] = [[5, 8, 45, 60], [0, 0, height, width], [20, 20, 20, 20]][:places]
    masks = np.zeros((batch, *size), np.int32)
    masks[:, 5:45, 8:60] = 1
    valid = np.zeros((batch, places), bool)
    valid[:-1, :3] = True
    classes = np.tile(np.arange(places, dtype=np.int32) % 3 + 1, (batch, 1))
    crowd = np.zeros_like(valid)
    return {"boxes": boxes, "classes": classes, "masks": masks, "valid": valid, "crowd": crowd}


@pytest.fixture(scope="module")
def compiled():
    """`compiled(**overrides)`: the model's three programs, compiled once for every test."""

    @functools.cache
    def programs(**overrides):
        model = build(**overrides)

        def losses(variables, image, targets, sizes, key):
            answers = model.apply(
                variables, image, targets=targets, sizes=sizes, rngs={"dropout": key}
            )
            terms = instance_losses.terms(answers)
            total, count = instance_losses.total(terms, len(image))
            return total / count, (terms, answers)

        def gradient(params, rest, *others):
            return jax.grad(lambda p: losses({**rest, "params": p}, *others)[0])(params)

        def forward(variables, image, sizes):
            return model.apply(variables, image, sizes=sizes)

        return model, jax.jit(forward), jax.jit(losses), jax.jit(gradient)

    return programs


@pytest.fixture
def small(filled, compiled):
    model, *programs = compiled()
    return model, filled(model, (2, *SIZE, 3)), *programs


def learn(small, targets, *, sizes=None, seed=0):
    _, variables, _, losses, _ = small
    sizes = ALL if sizes is None else np.asarray(sizes)
    return losses(variables, draw_images(), targets, sizes, jax.random.key(seed))


def test_the_pyramid_halves_from_level_to_level():
    model = FPN(8)
    maps = [jnp.ones((1, 64 >> i, 96 >> i, 4 << i)) for i in range(4)]
    variables = jax.eval_shape(model.init, jax.random.key(0), maps)
    pyramid = jax.eval_shape(model.apply, variables, maps)
    shapes = [(1, 64, 96, 8), (1, 32, 48, 8), (1, 16, 24, 8), (1, 8, 12, 8), (1, 4, 6, 8)]
    assert [level.shape for level in pyramid] == shapes


def test_every_level_of_the_pyramid_sees_the_coarser_ones(filled):
    model = FPN(4)
    maps = [jnp.ones((1, 16 >> i, 16 >> i, 3)) for i in range(4)]
    shapes = jax.eval_shape(model.init, jax.random.key(0), maps)
    variables = jax.tree.map(lambda leaf: 0.1 * jnp.ones(leaf.shape), shapes)
    apply = jax.jit(model.apply)
    before = apply(variables, maps)
    for changed in range(4):
        others = [m + 1 if i == changed else m for i, m in enumerate(maps)]
        after = apply(variables, others)
        moved = [bool(np.any(a != b)) for a, b in zip(before, after, strict=True)]
        # P6 follows P5.
        assert moved == [level <= changed or (level == 4 and changed == 3) for level in range(5)]


def test_detections(small):
    _, variables, forward, *_ = small
    sizes = jnp.asarray([SIZE, (40, 60)])
    found = forward(variables, draw_images(), sizes)
    shapes = {name: (value.shape, value.dtype) for name, value in found.items()}
    assert shapes == {
        "boxes": ((2, 12, 4), jnp.float32),
        "scores": ((2, 12), jnp.float32),
        "classes": ((2, 12), jnp.int32),
        "masks": ((2, 12, 28, 28), jnp.float32),
        "valid": ((2, 12), jnp.bool_),
    }
    found = jax.device_get(found)
    assert found["valid"].any(axis=1).all()
    for image in range(2):
        there = found["valid"][image]
        boxes, scores = found["boxes"][image], found["scores"][image]
        assert (np.sort(~there) == ~there).all()
        assert (np.diff(scores) <= 0).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= np.asarray(sizes)[image]).all()
        assert (boxes[there, 2:] > boxes[there, :2]).all()
        assert set(found["classes"][image][there]) <= {1, 2, 3}
        assert ((found["masks"][image] >= 0) & (found["masks"][image] <= 1)).all()
        for name in ("boxes", "scores", "classes", "masks"):
            assert not found[name][image][~there].any()


def test_an_image_keeps_its_detections_in_any_batch(small):
    _, variables, forward, *_ = small
    image = draw_images()
    together, swapped = (forward(variables, x, ALL) for x in (image, image[::-1]))
    for name, value in together.items():
        np.testing.assert_allclose(value, swapped[name][::-1], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_half_precision(small, compiled):
    _, variables, forward, *_ = small
    _, rounded, losses, _ = compiled(dtype=jnp.bfloat16)
    half = rounded(variables, draw_images(), ALL)
    assert {name: value.dtype for name, value in half.items()} == {
        name: value.dtype for name, value in forward(variables, draw_images(), ALL).items()
    }
    assert all(np.isfinite(value).all() for value in half.values())
    arguments = draw_images(), targets(), ALL, jax.random.key(0)
    assert np.isfinite(losses(variables, *arguments)[0])


@pytest.mark.parametrize("size", [(1, 1), (33, 20)])
def test_images_of_any_size(size):
    model = build()
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    found, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), image)
    assert found["boxes"].shape == (1, 12, 4)


def test_one_image_without_an_object_and_one_with(small):
    total, (terms, answers) = learn(small, targets())
    assert np.isfinite(total)
    anchors, regions, masks = answers["anchors"], answers["regions"], answers["masks"]
    assert terms.keys() == set(instance_losses.TERMS)
    assert anchors["positive"].sum(axis=1)[0] > 0
    assert anchors["positive"].sum(axis=1)[1] == 0
    assert (anchors["valid"].sum(axis=1) == 32).all()
    # The true boxes with area are proposals, so there are positive regions from the first step on.
    assert 2 <= (regions["label"][0] > 0).sum() <= 8
    assert not regions["label"][1].any()
    assert set(np.unique(regions["label"][0])) == {0, 1, 2}  # class 3 is that of the point
    assert masks["logits"].shape == masks["target"].shape == (2, 8, 28, 28)
    np.testing.assert_array_equal(masks["valid"], regions["label"][:, :8] > 0)
    # The box that is its object's own asks for no offset, and for a full mask.
    own = (np.abs(regions["target"][0]).max(axis=1) < 1e-4) & (regions["label"][0] == 1)
    assert own.any()
    np.testing.assert_allclose(masks["target"][0][own[:8]], 1.0, atol=0.1)


def test_every_parameter_has_a_gradient(small, assert_all_learn):
    _, variables, _, _, gradient = small
    rest = {"batch_stats": variables["batch_stats"]}
    sizes = ALL
    arguments = rest, draw_images(), targets(), sizes, jax.random.key(0)
    found = gradient(variables["params"], *arguments)
    assert_all_learn(found)
    # Without any object the anchors and classes still teach, boxes and masks do not.
    nothing = targets()
    nothing["valid"][:] = False
    found = gradient(variables["params"], rest, draw_images(), nothing, sizes, jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(found)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["mask_head"]))
    assert not np.any(found["rpn"]["offsets"]["kernel"])
    assert np.any(found["rpn"]["objectness"]["kernel"])
    assert np.any(found["box_head"]["score"]["kernel"])


def test_what_is_learned_from_depends_on_the_key_and_the_place_in_the_batch(small):
    both = targets()
    both["valid"][:] = True
    labels = [learn(small, both, seed=seed)[1][1]["anchors"]["logits"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert np.any(labels[0] != labels[2])


def test_without_a_key_the_sample_is_fixed():
    model = build()
    image = jax.ShapeDtypeStruct((2, *SIZE, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    apply = functools.partial(jax.eval_shape, lambda v, x: model.apply(v, x, targets=targets()))
    assert apply(variables, image)["regions"]["logits"].shape == (2, 32, 4)


def test_padding_teaches_nothing(small):
    sizes = [(40, 60), (40, 60)]
    nothing = targets()
    nothing["valid"][:] = False
    _, (terms, answers) = learn(small, nothing, sizes=sizes)
    anchors = np.concatenate(
        pyramid_anchors(
            [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)],
            (96, 128),
            SMALL["anchor_sizes"],
            (0.5, 1, 2),
        )
    )
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    inside = (centers < sizes[0]).all(axis=1)
    assert 0 < inside.sum() < len(inside)
    assert terms["objectness"][1] == 2 * min(32, inside.sum())
    assert (answers["regions"]["valid"]).any(axis=1).all()


def test_in_crowds_nothing_is_learned(small):
    everywhere = targets()
    everywhere["valid"][:] = True
    everywhere["boxes"][:] = [0, 0, *SIZE]
    crowd = {**everywhere, "crowd": np.ones_like(everywhere["valid"])}
    _, (terms, answers) = learn(small, crowd)
    assert not answers["anchors"]["positive"].any()
    assert not answers["regions"]["label"].any()
    assert not answers["regions"]["valid"].any()  # proposals are clipped to the image
    # Anchors that are left lie mostly outside the image.
    assert np.isfinite([float(value) for pair in terms.values() for value in pair]).all()


@pytest.mark.slow
def test_300_objects(small):
    many = targets(places=300)
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, size=(2, 300, 2))
    many["boxes"] = np.concatenate([corner, corner + 12], axis=2).astype(np.float32)
    many["valid"][:] = True
    total, (_, answers) = learn(small, many)
    assert np.isfinite(total)
    assert (answers["masks"]["valid"].sum(axis=1) == 8).all()


@pytest.mark.slow
def test_bitmaps_are_as_good_as_a_map(small):
    objects = targets()
    number = np.arange(1, 4)[:, None, None]
    bitmaps = {**objects, "masks": objects["masks"][:, None] == number}
    first, second = learn(small, objects)[0], learn(small, bitmaps)[0]
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_one_mask_for_all_classes():
    model = build(class_agnostic=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SIZE, 3)))
    assert shapes["params"]["mask_head"]["score"]["kernel"].shape == (1, 1, 16, 1)
    assert shapes["params"]["box_head"]["score"]["kernel"].shape == (64, 4)


def test_trained_norms_are_parameters_and_frozen_ones_are_not(count_parameters):
    shape = (1, 64, 64, 3)
    frozen, batch = build(), build(norm="batch")
    difference = count_parameters(batch, shape) - count_parameters(frozen, shape)
    # 53,120 in ResNet-50, whose first convolution has 64 channels.
    assert difference == 53_120 * 4 // 64
    assert not jax.tree.leaves(
        jax.eval_shape(build(norm="group").init, jax.random.key(0), jnp.zeros(shape)).get(
            "batch_stats", {}
        )
    )


def test_proposals_are_the_best_of_their_level():
    anchors = [np.array([[0, 0, 8, 8], [0, 1, 8, 9], [20, 20, 28, 28]], np.float32)] * 2
    logits = [jnp.asarray([[1.0, 2.0, 0.0]]), jnp.asarray([[3.0, -1.0, 5.0]])]
    offsets = [jnp.zeros((1, 3, 4))] * 2
    sizes = jnp.asarray([[28, 24]])
    run = jax.jit(
        functools.partial(propose, anchors=anchors, sizes=sizes, after=5, threshold=0.5),
        static_argnames="before",
    )
    boxes, scores, kept = run(logits, offsets, before=3)
    # Of the first level the box at 1 goes over the one at 0; levels leave each other alone.
    expected = [[20, 20, 28, 24], [0, 0, 8, 8], [0, 1, 8, 9], [20, 20, 28, 24]]
    assert kept.tolist() == [[True] * 4 + [False]]
    assert boxes[0, :4].tolist() == expected
    np.testing.assert_allclose(scores[0, :4], 1 / (1 + np.exp([-5.0, -3, -2, 0])), rtol=1e-6)
    assert run(logits, offsets, before=1)[2].sum() == 2


def test_detections_of_different_classes_leave_each_other_alone():
    logits = jnp.asarray([[0.0, 5, 4], [0, 4.9, 0], [9, 0, 0]])
    boxes = jnp.asarray([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 20, 20]])
    offsets = jnp.zeros((3, 3, 4))
    there, size = jnp.ones(3, bool), jnp.asarray([30, 30])
    run = jax.jit(functools.partial(detect, score_threshold=0.05, threshold=0.5, limit=4))
    box, score, kind, kept = run(logits, offsets, boxes, there, size)
    # The second region's class 1 has the highest share, and the first one's goes.
    assert kind.tolist() == [1, 2, 0, 0]
    assert kept.tolist() == [True, True, False, False]
    assert box[0].tolist() == [1, 0, 11, 10]
    assert box[1].tolist() == [0, 0, 10, 10]
    np.testing.assert_allclose(score[:2], [0.98533, 0.26761], atol=1e-4)


def test_the_anchors_of_the_pyramid():
    maps = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    anchors = pyramid_anchors(maps, (96, 128), (32, 64, 128, 256, 512), (0.5, 1.0, 2.0))
    assert [len(a) for a in anchors] == [3 * h * w for h, w in maps]
    # Where a map's size does not divide the image's, its stride is rounded down: 96 / 2, 128 / 2.
    centers = (anchors[4][:, :2] + anchors[4][:, 2:]) / 2
    assert np.unique(centers[:, 0]).tolist() == [0, 48]
    assert np.unique(centers[:, 1]).tolist() == [0, 64]


def test_its_cost_is_told_by_answer():
    found = measure(build(), SIZE, 3)
    assert found.output_shape["masks"] == (1, 12, 28, 28)
    assert found.output_shape["valid"] == (1, 12)
    # More detections cost more of the mask head, each alike.
    steps = [measure(build(detections=n), SIZE, 3).macs for n in (10, 11, 12)]
    assert steps[1] - steps[0] == steps[2] - steps[1] > 0


class TestMistakes:
    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ({"num_classes": 1}, r"num_classes is 1; expected at least 2: the background and"),
            ({"width": 0}, r"width is 0; expected an integer of at least 1"),
            ({"anchor_sizes": (8, 16)}, r"anchor_sizes is \(8, 16\); expected 5 numbers above 0"),
            ({"aspect_ratios": ()}, r"aspect_ratios is \(\); expected at least one number"),
            ({"proposals": (100, 0)}, r"proposals is \(100, 0\); expected 2 numbers above 0"),
            ({"proposals": (1.5, 2)}, r"a number of proposals is 1\.5; expected an integer"),
            ({"score_threshold": 2}, r"score_threshold is 2; expected a number from 0 to 1"),
            ({"detections": "9"}, r"detections is '9'; expected an integer of at least 1"),
            ({"norm": "layer"}, r"norm is 'layer'; expected one of 'none', 'batch'"),
        ],
    )
    def test_impossible_overrides(self, overrides, message):
        with pytest.raises(SegzooError, match=message):
            build(**overrides)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("boxes", np.zeros((2, 3, 5)), r"boxes have shape \(2, 3, 5\); expected \[2, M, 4\]"),
            ("boxes", np.zeros((2, 0, 4)), r"expected \[2, M, 4\] with M at least 1"),
            ("valid", np.zeros((2, 4), bool), r"valid have shape \(2, 4\); expected \[2, 3\]"),
            ("masks", np.zeros((2, 9, 9)), r"expected \[2, 3, 75, 97\] or \[2, 75, 97\]"),
            ("labels", np.zeros((2, 3)), r"the targets are \['boxes', .*expected \['boxes', 'cla"),
        ],
    )
    def test_targets_that_do_not_fit(self, name, value, message):
        model = build()
        image = jax.ShapeDtypeStruct((2, *SIZE, 3), jnp.float32)
        with pytest.raises(SegzooError, match=message):
            jax.eval_shape(
                lambda x: model.init(jax.random.key(0), x, targets={**targets(), name: value}),
                image,
            )


@pytest.mark.exhaustive  # test_train_objects.py has pictures learned by heart
def test_it_learns_to_find_rectangles_and_their_shape():
    """Two kinds of things on dark ground: bright squares, and red discs."""
    rng = np.random.default_rng(0)
    size = (64, 64)
    y, x = np.mgrid[:64, :64] + 0.5
    image, boxes, masks = rng.normal(size=(4, *size, 3)) * 0.1, [], []
    for i in range(4):
        (a, b), (c, d) = rng.integers(2, 12, 2), rng.integers(34, 44, 2)
        square = (y > a) & (y < a + 20) & (x > b) & (x < b + 20)
        disc = (y - c - 9) ** 2 + (x - d - 9) ** 2 < 81
        image[i][square] += 1.5
        image[i][disc] += [1.5, -1.5, -1.5]
        boxes.append([[a, b, a + 20, b + 20], [c, d, c + 18, d + 18]])
        masks.append(np.where(square, 1, np.where(disc, 2, 0)))
    truth = {
        "boxes": np.asarray(boxes, np.float32),
        "classes": np.tile(np.asarray([1, 2], np.int32), (4, 1)),
        "masks": np.asarray(masks, np.int32),
        "valid": np.ones((4, 2), bool),
    }
    model = build(width=8, num_classes=3, norm="group", score_threshold=0.5)
    image = jnp.asarray(image, jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), image)["params"]
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(1e-3))

    @jax.jit
    def step(params, state, key):
        def objective(params):
            answers = model.apply(
                {"params": params}, image, targets=truth, train=True, rngs={"dropout": key}
            )
            total, count = instance_losses.total(instance_losses.terms(answers), 4)
            return total / count

        loss, gradient = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for i in range(150):
        params, state, loss = step(params, state, jax.random.key(i))
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.25 * losses[0]
    found = jax.device_get(jax.jit(model.apply)({"params": params}, image))
    pasted = np.asarray(paste_masks(found["masks"], found["boxes"], size))
    for i in range(4):
        for number in (1, 2):
            right = found["valid"][i] & (found["classes"][i] == number)
            mask = truth["masks"][i] == number
            overlaps = [(m & mask).sum() / (m | mask).sum() for m in pasted[i][right]]
            assert max(overlaps, default=0) > 0.7, (i, number, overlaps)
