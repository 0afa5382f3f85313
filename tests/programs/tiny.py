"""A model, an experiment and data so small that a whole run takes a second or two."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo import data, registry
from segzoo.data.augment import Augment
from segzoo.data.made import MadeDataset
from segzoo.data.spec import Dataset
from segzoo.experiment import Experiment
from segzoo.layers import Dropout
from segzoo.optim import Optimizer


class Tiny(nn.Module):
    """Two convolutions, with BatchNorm and drop-out, so that a run has all kinds of state."""

    num_classes: int
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    width: int = 4
    norm: bool = True
    dropout: float = 0.2
    head: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        # BatchNorm takes a bias out again: its gradient would be rounding alone.
        x = nn.Conv(self.width, (3, 3), use_bias=not self.norm, dtype=self.dtype)(image)
        if self.norm:
            x = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name, dtype=self.dtype)(x)
        x = Dropout(self.dropout, self.axis_name)(nn.relu(x), deterministic=not train)
        if self.head:
            early = nn.Conv(self.num_classes, (1, 1), name="head")(x)
            if not self.is_initializing():
                self.sow("aux_logits", "early", early)
        return nn.Conv(self.num_classes, (1, 1), dtype=self.dtype)(x).astype(jnp.float32)


@registry.register(task="semantic", paper="none", input_shape=(16, 16, 3))
def tiny(
    *,
    num_classes=2,
    dtype=jnp.float32,
    axis_name=None,
    width=4,
    norm=True,
    dropout=0.2,
    head=False,
) -> nn.Module:
    """Two convolutions."""
    return Tiny(num_classes, dtype, axis_name, width, norm, dropout, head)


def experiment(**changes) -> Experiment:
    """Twelve steps, a row of the log each, an evaluation every four, a checkpoint every two."""
    fields = {
        "name": "tiny",
        "model": "tiny",
        "dataset": "camvid",
        "steps": 12,
        "batch_size": 4,
        "optimizer": Optimizer(name="adam", learning_rate=0.02),
        "augment": Augment(flip_horizontal=True, brightness=0.1),
        "ema": 0.9,
        "log_every": 1,
        "eval_every": 4,
        "checkpoint_every": 2,
        "pictures": 1,
        "loader_threads": 1,
    }
    return Experiment(**{**fields, **changes})


def dataset(size=(16, 16)) -> MadeDataset:
    """Made-up examples with the classes of CamVid."""
    return MadeDataset(data.get("camvid").spec, size, {"train": 10, "val": 4, "test": 6})


class Trapped(Dataset):
    """The dataset, with something that happens when its n-th training example is read.

    The first is read for its shape alone; then come four a step.
    """

    def __init__(self, number, act):
        self._dataset, self._left, self._act = dataset(), number, act
        self.spec = self._dataset.spec

    @property
    def splits(self):
        return self._dataset.splits

    def source(self, split):
        inner = self._dataset.source(split)
        return TrappedSource(self, inner) if split == "train" else inner

    def read(self, example):
        self._left -= 1
        if self._left == 0:
            self._act(example)
        return example


class TrappedSource:
    def __init__(self, trap, inner):
        self._trap, self._inner = trap, inner

    def __len__(self):
        return len(self._inner)

    def __getitem__(self, index):
        return self._trap.read(self._inner[index])
