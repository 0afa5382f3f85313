"""Keras's side: the U-Net of its tutorials, on TensorFlow."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from experiments.benchmarks.contestants import Contestant, Facts
from experiments.benchmarks.workloads import LEARNING_RATE, MEAN, STD
from segzoo.errors import SegzooError

WIDTH, DEPTH, DROPOUT = 64, 4, 0.5


def unet(workload: Facts) -> keras.Model:
    """Builds the U-Net by the functional interface, one sigmoid at the end."""
    layers = keras.layers
    arguments = {"width": WIDTH, "depth": DEPTH, "dropout": DROPOUT, **workload["model_args"]}
    width, depth = arguments["width"], arguments["depth"]
    image = layers.Input((*workload["size"], workload["channels"]), dtype="uint8")
    x = layers.Rescaling(1 / STD, offset=-MEAN / STD)(image)
    skips = []
    for level in range(depth + 1):
        x = layers.MaxPooling2D()(x) if level else x
        for _ in range(2):
            x = layers.Conv2D(width * 2**level, 3, padding="same", activation="relu")(x)
        if level >= depth - 1:
            x = layers.Dropout(arguments["dropout"])(x)
        skips.append(x)
    x = skips.pop()
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(width * 2**level, 2, strides=2)(x)
        x = layers.Concatenate()([skips[level], x])
        for _ in range(2):
            x = layers.Conv2D(width * 2**level, 3, padding="same", activation="relu")(x)
    probability = layers.Conv2D(1, 1, activation="sigmoid", dtype="float32")(x)
    return keras.Model(image, probability)


class Keras(Contestant):
    """Keras on TensorFlow, as `compile` and `train_on_batch` have it."""

    packages: ClassVar[tuple[str, ...]] = ("keras",)

    def describe(self) -> Facts:
        """Returns `platform` and `versions`; TensorFlow's wheel has several names."""
        facts = super().describe()
        return {**facts, "versions": {**facts["versions"], "tensorflow": tf.__version__}}

    def platform(self) -> str:
        """Returns "cpu" or "gpu"."""
        return "gpu" if tf.config.list_physical_devices("GPU") else "cpu"

    def synchronize(self, result: Any) -> None:
        """Waits for the result; a train step gives numbers and has waited."""
        if hasattr(result, "numpy"):
            result.numpy()

    def device_peak(self) -> int | None:
        """Returns the allocator's peak, None on a CPU."""
        if self.platform() == "cpu":
            return None
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])

    def train_step(self, workload: Facts) -> Facts:
        """Builds the compiled step of `keras.Model` on a resident batch."""
        model = self._model(workload)
        model.compile(
            optimizer=keras.optimizers.Adam(LEARNING_RATE), loss=keras.losses.BinaryCrossentropy()
        )
        shape = (workload["batch"], *workload["size"], 1)
        label = tf.constant(np.random.default_rng(1).integers(0, 2, shape).astype(np.uint8))
        image = self._image(workload)
        self.run = lambda: model.train_on_batch(image, label)
        return {"parameters": model.count_params()}

    def inference(self, workload: Facts) -> Facts:
        """Builds the forward pass as one graph."""
        model = self._model(workload)
        forward = tf.function(lambda image: model(image, training=False))
        image = self._image(workload)
        self.run = lambda: forward(image)
        return {"parameters": model.count_params()}

    def product(self, side: int, dtype: str) -> Facts:
        """Builds the product of two square matrices."""
        a, b = (tf.cast(tf.random.normal((side, side)), dtype) for _ in range(2))
        self.run = lambda: tf.matmul(a, b)
        return {}

    def _model(self, workload: Facts) -> keras.Model:
        if workload["model"] != "unet" or workload["classes"] != 1:
            raise SegzooError(f"{workload['model']} is not written in Keras here")
        half = workload["dtype"] == "bfloat16"
        keras.mixed_precision.set_global_policy("mixed_bfloat16" if half else "float32")
        return unet(workload)

    def _image(self, workload: Facts) -> tf.Tensor:
        shape = (workload["batch"], *workload["size"], workload["channels"])
        return tf.constant(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))
