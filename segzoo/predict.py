"""Pictures of any size -> class ids.

A picture that fits in memory runs whole; a larger one is cut into overlapping tiles whose logits
are blended with a smooth window. A model with the U-Net paper's own geometry (`padding="VALID"`)
sees the picture mirrored beyond its border, so that every pixel gets logits (arXiv:1505.04597,
Figure 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from segzoo.data.transforms import FitSides, resize
from segzoo.errors import SegzooError, check_positive_int
from segzoo.pictures import open_picture
from segzoo.tiles import Size, Tiling, bucket, input_window, is_valid, mirror

if TYPE_CHECKING:
    import flax.linen as nn

    from segzoo.ops.dense_crf import DenseCRF
    from segzoo.weights import ModelInfo

WHOLE = 2**21  # pixels or voxels of the largest input that runs in one piece: full HD, or 128^3
TILE = {2: 1024, 3: 128}  # default side of a tile by number of spatial axes


def full_size_logits(
    model: nn.Module, variables: Mapping[str, Any], image: jax.Array, **told: Any
) -> jax.Array:
    """Returns logits for every pixel of a batch, also from models with `padding="VALID"`.

    Pure; works under `jit`, where sizes are static. Of every other model, classifiers and those of
    objects included, it is the plain application.

    Args:
        model: a module.
        variables: its `params` and, where it has any, `batch_stats`.
        image: `[B, *S, C]`, float, already normalised.
        **told: what else the model takes.

    Returns:
        `[B, *S, K]`, float32.
    """
    if not is_valid(model):
        plain: Any = model.apply(variables, image, **told)
        return plain
    size = image.shape[1:-1]
    window, before = input_window(model, size)
    image = mirror(image, before, _after(window, before, size), first_axis=1)
    logits: Any = model.apply(variables, image)
    return _cropped(logits, size)


def trained_size(size: Size, info: ModelInfo) -> Size:
    """Returns the size a picture has at the scale the model was trained at.

    Args:
        size: `*S` of the picture.
        info: `image_size` and `image_fit` say what training did.
    """
    if info.image_size is None or info.image_fit == "crop":
        return size
    if info.image_fit == "sides":
        return FitSides(info.image_size).output_shape((*size, 1))[:-1]
    if info.image_fit == "resize":
        return info.image_size
    axes = list(zip(info.image_size, size, strict=True))
    scale = min(trained / length for trained, length in axes)
    return tuple(min(trained, max(1, round(length * scale))) for trained, length in axes)


class Predictor:
    """Predicts class ids for pictures of any size.

    Of a model of task "instance" it is an `ObjectPredictor`, which finds objects.

    Pictures are brought to the scale the model was trained at (`info.image_size`, `info.image_fit`)
    and the logits back to the picture's own. One program is compiled per size of input, on first
    use; sizes are rounded up to few (`tiles.bucket`), except the size of training and those that
    are multiples of 8. The strip this adds at the far borders is mirrored picture.

    Args:
        model: a module of task "semantic".
        variables: its `params` and, where it has any, `batch_stats`.
        info: says how pictures are normalised and what the classes are.
        tile: side of the tiles, or one side per axis, at the scale of training. None: pictures of
            up to two million pixels (or the size trained at, if larger) run whole, larger ones in
            tiles of 1024 (volumes: 128).
        overlap: pixels that neighbouring tiles share, at most half a tile; None: a quarter. A model
            with `padding="VALID"` needs none: its tiles fit together exactly.
        crf: refine the logits of each whole picture, at its own size, by a dense CRF.

    Raises:
        SegzooError: for a model of another task, or an impossible tile or overlap.
    """

    def __new__(
        cls, model: nn.Module, variables: Mapping[str, Any], info: ModelInfo, **options: Any
    ) -> Any:
        """Returns an `ObjectPredictor` for a model of task "instance"."""
        if info.task == "instance":
            from segzoo.object_predict import ObjectPredictor

            return ObjectPredictor(model, variables, info, **options)
        return super().__new__(cls)

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        info: ModelInfo,
        *,
        tile: int | tuple[int, ...] | None = None,
        overlap: int | tuple[int, ...] | None = None,
        crf: DenseCRF | None = None,
    ):
        if info.task != "semantic":
            raise SegzooError(
                f"model {info.model!r} is of task {info.task!r}; only semantic models give a class "
                "to every pixel."
            )
        self.model, self.info, self.crf = model, info, crf
        dims = info.spatial_dims
        self._tile = None if tile is None else _per_axis("tile", tile, dims, 1)
        self._overlap = None if overlap is None else _per_axis("overlap", overlap, dims, 0)
        if self._tile and self._overlap:
            for side, shared in zip(self._tile, self._overlap, strict=True):
                if 2 * shared > side:
                    raise SegzooError(
                        f"overlap is {shared}; expected at most half the tile of {side}."
                    )
        self._variables = jax.device_put(dict(variables))
        mean, std = (np.asarray(values, np.float32) for values in (info.mean, info.std))

        def logits(variables: Mapping[str, Any], window: jax.Array, size: Size) -> jax.Array:
            image = (window.astype(jnp.float32) - mean) / std
            output: Any = model.apply(variables, image)
            return _cropped(output, size)[0]

        def ids(variables: Mapping[str, Any], window: jax.Array, size: Size) -> jax.Array:
            return _ids(logits(variables, window, size))

        self._logits = jax.jit(logits, static_argnames="size")
        self._ids = jax.jit(ids, static_argnames="size")

    def __call__(
        self, image: str | Path | Image.Image | np.ndarray, *, probabilities: bool = False
    ) -> np.ndarray:
        """Predicts one picture or volume.

        Args:
            image: a file, a PIL image, or uint8 `[*S]` or `[*S, C]`. Grey and RGB are converted
                into each other as the model needs; see `segzoo.pictures`.
            probabilities: return these in place of class ids.

        Returns:
            uint8 `[*S]` class ids at the size of the picture, or float32 `[*S, K]` probabilities:
            the softmax over the classes, or, from a model with one logit, `[*S, 1]`, the sigmoid
            of class 1, whose id wins above 0.5. With a CRF they are its marginals.

        Raises:
            SegzooError: for a file that cannot be read or a picture that does not fit the model.
        """
        picture = open_picture(image, self.info.in_channels, self.info.spatial_dims)
        size = picture.shape[:-1]
        working = trained_size(size, self.info)
        if self.crf is not None:
            return self._refined(picture, working, probabilities)
        if working == size:
            return self._run(picture, "probabilities" if probabilities else "ids")
        return _enlarged(self._run(resize(picture, working), "logits"), size, probabilities)

    def _refined(self, picture: np.ndarray, working: Size, probabilities: bool) -> np.ndarray:
        """Predicts at the scale of training and refines at the picture's own."""
        from segzoo.ops.dense_crf import dense_crf, winners

        assert self.crf is not None
        size = picture.shape[:-1]
        logits = self._run(picture if working == size else resize(picture, working), "logits")
        if working != size:
            maps = [resize(logits[..., k], size) for k in range(logits.shape[-1])]
            logits = np.stack(maps, axis=-1)
        marginals = np.asarray(dense_crf(logits[None], picture[None], self.crf))[0]
        return marginals if probabilities else winners(marginals)

    def _run(
        self, picture: np.ndarray, want: Literal["ids", "probabilities", "logits"]
    ) -> np.ndarray:
        """Predicts `[*S, C]` at the scale of training."""
        tiling = self._tiling(picture.shape[:-1])
        window, before = input_window(self.model, tiling.tile)
        # All windows of all tiles, laid out in one mirrored picture.
        reach = tuple(
            covered - tile + length
            for covered, tile, length in zip(tiling.covered, tiling.tile, window, strict=True)
        )
        picture = mirror(picture, before, _after(reach, before, tiling.size))
        if math.prod(tiling.counts) == 1:
            run = self._ids if want == "ids" else self._logits
            result = run(self._variables, picture[None], size=tiling.tile)
            if want == "probabilities":
                result = _probabilities(result)
            return np.asarray(result)[_box((0,) * len(window), tiling.size)]
        # Only one row of tiles is held as logits, unless they are what is wanted.
        finish: Callable[[np.ndarray], Any] = np.asarray
        if want != "logits":
            finish = _ids if want == "ids" else _probabilities
        bands = [np.asarray(finish(band)) for band in self._bands(picture, tiling, window)]
        return np.concatenate(bands)[_box((0,) * len(window), tiling.size)]

    def _tiling(self, size: Size) -> Tiling:
        """Decides between one piece and tiles."""
        trained = self.info.image_size
        whole = size if size == trained else bucket(size)
        tile = self._tile
        if tile is None:
            limit = max(WHOLE, math.prod(trained or ()))
            side = TILE[len(size)]
            tile = whole if math.prod(size) <= limit else (side,) * len(size)
        # An axis shorter than the tile needs one tile, no longer than that axis.
        tile = tuple(min(t, w) for t, w in zip(tile, whole, strict=True))
        if is_valid(self.model):
            overlap: Size = (0,) * len(size)
        elif self._overlap is not None:
            overlap = tuple(min(o, t // 2) for o, t in zip(self._overlap, tile, strict=True))
        else:
            overlap = tuple(side // 4 for side in tile)
        return Tiling(size, tile, overlap)

    def _bands(self, picture: np.ndarray, tiling: Tiling, window: Size) -> Iterator[np.ndarray]:
        """Blends the logits of overlapping tiles.

        Yields finished logits `[rows, ..., K]`, from the first row of the picture on.
        """
        held: np.ndarray | None = None
        for row, indices in tiling.rows():
            band: np.ndarray | None = None
            for index in indices:
                start = tiling.start(index)
                piece = picture[_box(start, window)][None]
                logits = np.asarray(self._logits(self._variables, piece, size=tiling.tile))
                if band is None:
                    shape = (tiling.tile[0], *tiling.covered[1:], logits.shape[-1])
                    band = np.zeros(shape, np.float32)
                band[_box((0, *start[1:]), tiling.tile)] += tiling.window(index) * logits
            assert band is not None  # every row has tiles
            if held is not None:
                band[: len(held)] += held
            last = row == tiling.counts[0] - 1
            done = tiling.tile[0] if last else tiling.step[0]
            yield band[:done]
            held = band[done:]


def _enlarged(logits: np.ndarray, size: Size, probabilities: bool) -> np.ndarray:
    """Brings logits `[*s, K]` to `*S` class by class, and reads ids or probabilities off them."""
    if probabilities or logits.shape[-1] == 1:
        maps = [resize(logits[..., k], size) for k in range(logits.shape[-1])]
        finish = _probabilities if probabilities else _ids
        return np.asarray(finish(np.stack(maps, axis=-1)))
    # A running maximum: all classes of a large picture at once would not fit in memory.
    ids = np.zeros(size, np.uint8)
    best = resize(logits[..., 0], size)
    for k in range(1, logits.shape[-1]):
        score = resize(logits[..., k], size)
        better = score > best
        ids[better] = k
        best[better] = score[better]
    return ids


def _ids(logits: jax.Array | np.ndarray) -> jax.Array:
    from segzoo.metrics import predict_classes

    return predict_classes(jnp.asarray(logits)).astype(jnp.uint8)


def _probabilities(logits: jax.Array | np.ndarray) -> jax.Array:
    logits = jnp.asarray(logits)
    return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)


def _after(window: Size, before: Size, size: Size) -> Size:
    """How far a window that begins `before` a picture reaches past its end."""
    return tuple(w - b - s for w, b, s in zip(window, before, size, strict=True))


def _cropped(logits: jax.Array, size: Size) -> jax.Array:
    """The first `size` positions of `[B, *S, K]`."""
    return logits[(slice(None), *(slice(length) for length in size))]


def _box(start: Size, size: Size) -> tuple[slice, ...]:
    return tuple(slice(s, s + length) for s, length in zip(start, size, strict=True))


def _per_axis(what: str, value: int | tuple[int, ...], dims: int, minimum: int) -> Size:
    sides = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(sides) != dims:
        raise SegzooError(
            f"{what} is {value!r}; expected one number, or one for each of {dims} axes."
        )
    for side in sides:
        check_positive_int(what, side, minimum)
    return sides
