"""The objects of an image: a fixed number of places for them, so that one program fits all."""

from __future__ import annotations

import logging

import numpy as np

from segzoo.data.spec import Example, Source
from segzoo.data.statistics import object_counts
from segzoo.errors import SegzooError, check_positive_int

log = logging.getLogger(__name__)

PLACES = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
"""How many places there may be; beyond, multiples of the last."""

MOST = PLACES[-1]
"""In training, unless told otherwise, images have room for this many objects at most."""


def choose_places(source: Source, wanted: int | None, most: int | None = None) -> int | None:
    """Returns how many places the examples of a source need.

    Args:
        source: of any task.
        wanted: a number to take instead.
        most: an upper limit.

    Returns:
        The smallest of `PLACES` that holds every example; None unless the task is "instance".
    """
    if not hasattr(source, "objects"):
        return wanted
    counts = object_counts(source)
    if wanted is not None:
        check_positive_int("places", wanted)
    else:
        needed = int(counts.max(initial=0))
        beyond = -(-needed // PLACES[-1]) * PLACES[-1]
        wanted = next((places for places in PLACES if places >= needed), beyond)
        wanted = wanted if most is None else min(wanted, most)
    lost = np.maximum(counts - wanted, 0)
    if lost.any():
        log.warning(
            "%d of %d images have more than %d objects: the largest are kept, %d of %d objects "
            "are left out",
            np.count_nonzero(lost),
            len(counts),
            wanted,
            lost.sum(),
            counts.sum(),
        )
    return wanted


def fill_places(example: Example, places: int | None, name: str) -> Example:
    """Gives every object a place, and marks those that are taken as `valid`.

    Args:
        example: of the task "instance", with M objects; of more than there are places the
            largest are kept, in their order.
        places: P.
        name: of the example, for messages.

    Returns:
        The example with `classes` int32 `[P]`, `crowd` and `valid` bool `[P]` and `instances` int32
        `[*S]`, or `masks` uint8 `[m, *S]` of the places that are taken.

    Raises:
        SegzooError: when the number of places is not known, or `instances` has more numbers than
            there are objects.
    """
    if places is None:
        raise SegzooError(
            f"{name} has objects, but its source has no method 'objects' that counts them; add "
            "it, or set places."
        )
    example, count = dict(example), len(example["classes"])
    if "instances" in example:
        highest = int(example["instances"].max(initial=0))
        if highest > count or example["instances"].min(initial=0) < 0:
            raise SegzooError(
                f"{name} has {count} classes of objects, but its instances go up to {highest}; "
                "expected m + 1 where object m is, and 0 elsewhere."
            )
    kept: np.ndarray | slice = slice(count)
    if count > places:
        kept = np.sort(np.argsort(-_areas(example, count), kind="stable")[:places])
        if "instances" in example:
            numbers = np.zeros(count + 1, np.int32)
            numbers[kept + 1] = np.arange(1, places + 1)
            example["instances"] = numbers[example["instances"]]
    if "masks" in example:
        example["masks"] = example["masks"][kept]
    taken = min(count, places)
    for key in ("classes", "crowd"):
        filled = np.zeros(places, example[key].dtype)
        filled[:taken] = example[key][kept]
        example[key] = filled
    example["valid"] = np.arange(places) < taken
    return example


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """Packs masks, uint8 `[..., W]` of 0 and 1, eight pixels a byte: `[..., ceil(W / 8)]`."""
    return np.packbits(masks, axis=-1)


def unpack_masks(bits: np.ndarray, places: int, width: int) -> np.ndarray:
    """Undoes `pack_masks`, and adds the places that are not taken.

    Args:
        bits: uint8 `[B, m, ..., ceil(W / 8)]`.
        places: P.
        width: W.

    Returns:
        uint8 `[B, P, ..., W]`.
    """
    # Zeros that nobody touches take no memory yet.
    masks = np.zeros((bits.shape[0], places, *bits.shape[2:-1], width), np.uint8)
    masks[:, : bits.shape[1]] = np.unpackbits(bits, axis=-1, count=width)
    return masks


def _areas(example: Example, count: int) -> np.ndarray:
    if "instances" in example:
        return np.bincount(example["instances"].ravel(), minlength=count + 1)[1:]
    return np.count_nonzero(example["masks"].reshape(count, -1), axis=1)
