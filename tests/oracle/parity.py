"""What both sides of a comparison share: the cases, the weights and images, the goldens.

Nothing here needs torch. A tensor is drawn from its name and shape in the other library, so that
both sides have the same weights without any being stored: the other library fills the tensors it
has, ours those that the table of names says it should have.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import segzoo
from segzoo.weights.convert import layouts_of
from segzoo.weights.names import Layout, places

GOLDENS = Path(__file__).parents[1] / "goldens"
SIZES = ((64, 64), (75, 97))
BATCH = 2
SAMPLES = 64
PATCH = 16
BACKBONE = ("backbone", "__call__")
SEED = 0
TOLERANCE = 1e-4  # of the standard deviation of what is compared

Outputs = dict[str, np.ndarray]  # "logits", "stage0", "stage1", ..., "aux0", ...: channels last


@dataclasses.dataclass(frozen=True)
class Case:
    """One network of another library, and ours that should be the same function.

    Attributes:
        model: ours.
        library: "torchvision", "timm", "pretrainedmodels" or "segmentation_models_pytorch".
        reference: the network's name there.
        overrides: of ours.
        options: of theirs.
        sizes: of the images.
        quick: whether the default tests include it.
    """

    model: str
    library: str = "torchvision"
    reference: str = ""
    overrides: tuple[tuple[str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    sizes: tuple[tuple[int, int], ...] = SIZES
    quick: bool = False

    @property
    def theirs(self) -> str:
        """The network's name in the other library."""
        return self.reference or self.model

    @property
    def name(self) -> str:
        """Our model's name, then its overrides; then timm, where torchvision has it too."""
        parts = [self.model, *(f"{key}={value}" for key, value in self.overrides)]
        both = any(case.model == self.model and case.library != self.library for case in CASES)
        return "-".join([*parts, "timm"] if self.library == "timm" and both else parts)

    def build(self) -> nn.Module:
        """Returns our network."""
        return segzoo.get(self.model, **dict(self.overrides))


def _family(*models: str, quick: tuple[str, ...] = (), **fields: Any) -> tuple[Case, ...]:
    return tuple(Case(model, quick=model in quick, **fields) for model in models)


# Theirs refuses sizes that its encoder does not halve exactly.
_UNET: dict[str, Any] = {
    "library": "segmentation_models_pytorch",
    "reference": "Unet",
    "sizes": ((64, 64), (64, 96)),
}

# Without weights for its encoder, which it would fetch, and with the auxiliary head ours has.
_SEGMENTER = (("weights_backbone", None), ("aux_loss", True))

CASES = (
    *_family("alexnet", quick=("alexnet",)),
    *_family("vgg11", "vgg13", "vgg16", "vgg19"),
    *_family("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", quick=("vgg11_bn",)),
    Case("googlenet", options=(("aux_logits", False),)),
    Case("googlenet", overrides=(("aux_loss", True),), quick=True),
    # Theirs ends in an error where a module with strides has features of odd size, as at 75 x 97.
    Case(
        "inception_v2",
        "pretrainedmodels",
        "bninception",
        sizes=((64, 64), (65, 99)),
        quick=True,
    ),
    *_family("resnet18", "resnet34", quick=("resnet18",)),
    *_family("resnet50", "resnet101", "resnet152", quick=("resnet50",)),
    Case(
        "resnet50",
        overrides=(("output_stride", 8),),
        options=(("replace_stride_with_dilation", (False, True, True)),),
    ),
    Case("resnet50", "timm"),
    *_family("densenet121", "densenet161", quick=("densenet121",)),
    *_family("densenet169", "densenet201"),
    Case("densenet121", "timm"),
    *_family(*(f"efficientnet_b{i}" for i in range(8)), quick=("efficientnet_b0",)),
    Case("efficientnet_b0", "timm"),
    Case(
        "efficientnet_b0",
        "timm",
        overrides=(("output_stride", 8),),
        options=(("output_stride", 8),),
    ),
    Case("efficientnet_b0", "timm", "tf_efficientnet_b0", (("variant", "paper"),), quick=True),
    Case("efficientnet_b3", "timm", "tf_efficientnet_b3", (("variant", "paper"),)),
    *_family("xception41", "xception65", "xception71", quick=("xception41",), library="timm"),
    Case(
        "xception65",
        "timm",
        overrides=(("output_stride", 8),),
        options=(("output_stride", 8),),
    ),
    *_family("fcn_resnet50", "fcn_resnet101", options=_SEGMENTER),
    *_family(
        "deeplabv3_resnet50",
        "deeplabv3_resnet101",
        quick=("deeplabv3_resnet50",),
        options=_SEGMENTER,
    ),
    Case(
        "unet",
        overrides=(("backbone", "resnet18"),),
        options=(("encoder_name", "resnet18"), ("classes", 2)),
        quick=True,
        **_UNET,
    ),
    Case(
        "unet",
        overrides=(("backbone", "resnet50"), ("upsample", "bilinear")),
        options=(
            *(("encoder_name", "resnet50"), ("classes", 2)),
            ("decoder_interpolation", "bilinear"),
        ),
        **_UNET,
    ),
)


def draw(name: str, shape: tuple[int, ...], variances: Mapping[str, float]) -> np.ndarray:
    """Draws a tensor from its name and shape in the other library, float32.

    Kernels have He's variance on their fan-in, the scales of normalisations lie around 1, biases
    are small. Running statistics lie around those of data of mean 0. In a network with
    normalisations kernels are half as large: it makes no difference before a normalisation, and
    gates (squeeze-and-excitation) that react less amplify the errors of rounding less.

    Args:
        name: of the tensor.
        shape: of the tensor.
        variances: of what enters each normalisation, by its module's name.
    """
    noise = _noise(name, shape)
    module, _, leaf = name.rpartition(".")
    variance = np.float32(variances.get(module, 1.0))
    if leaf == "weight" and len(shape) > 1:
        size = 0.5 if variances else 1.0
        return noise * np.float32(size * math.sqrt(2 / math.prod(shape[1:])))
    if leaf == "weight":
        return 1 + np.float32(0.1) * noise
    if leaf == "running_var":
        return variance * (1 + np.float32(0.2) * noise)
    if leaf == "running_mean":
        return np.sqrt(variance) * np.float32(0.1) * noise
    return np.float32(0.1) * noise


def draw_image(size: tuple[int, int]) -> np.ndarray:
    """Draws a batch of images, float32 `[B, H, W, 3]`: patches of colour, and noise.

    Of noise alone little is left where all places are averaged.
    """
    patches = [-(-n // PATCH) for n in size]
    image = _noise("patches", (BATCH, *patches, 3)).repeat(PATCH, 1).repeat(PATCH, 2)
    return image[:, : size[0], : size[1]] + _noise("noise", (BATCH, *size, 3)) / 2


def _noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform noise of mean 0 and variance 1, float32."""
    # The bits of a generator stay the same in every version of numpy; its distributions may not.
    generator = np.random.PCG64([SEED, zlib.crc32(name.encode())])
    count = math.prod(shape)
    bits = generator.random_raw(-(-count // 2)).view(np.uint32)[:count] >> np.uint32(8)
    noise = ((bits.astype(np.float32) + 0.5) / 2**23 - 1) * np.sqrt(np.float32(3))
    return noise.reshape(shape)


def layout(case: Case, model: nn.Module) -> Layout:
    """Returns the table of names of the case's library."""
    return next(table for table in layouts_of(model) if table.library == case.library)


def our_tensors(
    case: Case, model: nn.Module, variances: Mapping[str, float]
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Draws our variables.

    Returns:
        The variables, and the name and shape each tensor has in the other library.
    """
    image = jax.ShapeDtypeStruct((BATCH, *case.sizes[0], 3), jnp.float32)
    shapes = traverse_util.flatten_dict(
        jax.eval_shape(model.init, jax.random.key(0), image), sep="/"
    )
    variables, names = {}, {}
    for path, place in places(shapes, layout(case, model)).items():
        assert place is not None, f"{case.library} has no name for {path}"
        assert place.name not in names, f"two tensors are called {place.name}"
        names[place.name] = place.shape(shapes[path].shape)
        variables[path] = place.take(draw(place.name, names[place.name], variances))
    return traverse_util.unflatten_dict(variables, sep="/"), names


def our_outputs(model: nn.Module, variables: dict[str, Any], image: np.ndarray) -> Outputs:
    """Runs our network: its logits, the features of its backbone, its auxiliary logits."""

    @jax.jit
    def run(variables: Any, image: jax.Array) -> Any:
        return model.apply(
            variables,
            image,
            capture_intermediates=lambda module, method: (module.name, method) == BACKBONE,
            mutable=["intermediates", "aux_logits"],
        )

    logits, sown = run(variables, image)
    (features,) = sown["intermediates"]["backbone"]["__call__"]
    outputs = {"logits": logits}
    outputs |= {f"stage{i}": feature for i, feature in enumerate(features)}
    auxiliary = jax.tree.leaves(sown.get("aux_logits", {}))
    outputs |= {f"aux{i}": value for i, value in enumerate(auxiliary)}
    return {name: np.asarray(value) for name, value in outputs.items()}


@dataclasses.dataclass(frozen=True)
class Golden:
    """What the other library gave.

    Attributes:
        reference: the library, its version and the network's name.
        names: name and shape of every tensor in its file.
        variances: of what enters each normalisation, by its module's name: with these every
            normalisation gives values at unit scale, as with the statistics of real data.
        outputs: by the size of the image: logits of an image whole, of a map what `digest` keeps.
    """

    reference: str
    names: dict[str, tuple[int, ...]]
    variances: dict[str, float]
    outputs: dict[tuple[int, int], Outputs]

    def write(self, path: Path) -> None:
        """Writes the golden, the same bytes every time."""
        header = {
            "reference": self.reference,
            "names": dict(sorted(self.names.items())),
            "variances": dict(sorted(self.variances.items())),
        }
        arrays = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
        for size, outputs in self.outputs.items():
            arrays |= {f"{size[0]}x{size[1]}/{name}": value for name, value in outputs.items()}
        np.savez_compressed(path, **arrays)

    @classmethod
    def read(cls, path: Path) -> Golden:
        """Reads what `write` wrote."""
        with np.load(path) as file:
            header = json.loads(file["header"].tobytes())
            outputs: dict[tuple[int, int], Outputs] = {}
            for key in file.files:
                size, slash, name = key.partition("/")
                if slash:
                    height, width = map(int, size.split("x"))
                    outputs.setdefault((height, width), {})[name] = file[key]
        names = {name: tuple(shape) for name, shape in header["names"].items()}
        return cls(header["reference"], names, header["variances"], outputs)


def golden_path(case: Case) -> Path:
    """Returns the file of a case."""
    return GOLDENS / f"{case.name}.npz"


def digest(outputs: Outputs) -> Outputs:
    """Keeps of each map its mean, its standard deviation and some of its values."""
    return {
        name: _sample(name, value) if value.ndim == 4 else value for name, value in outputs.items()
    }


def errors(got: Outputs, expected: Outputs) -> dict[str, float]:
    """Returns the largest absolute difference of each output, at unit scale.

    That is, divided by the standard deviation of what was expected.
    """
    assert got.keys() == expected.keys()
    return {name: _error(got[name], expected[name]) for name in expected}


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape, (got.shape, expected.shape)
    scale = expected.std(dtype=np.float64)
    assert scale > 0
    return float(np.abs(got.astype(np.float64) - expected).max() / scale)


def _sample(name: str, value: np.ndarray) -> np.ndarray:
    generator = np.random.PCG64([SEED, zlib.crc32(name.encode())])
    positions = generator.random_raw(SAMPLES) % np.uint64(value.size)
    moments = [value.mean(dtype=np.float64), value.std(dtype=np.float64)]
    return np.array([*moments, *value.reshape(-1)[positions]], np.float32)
