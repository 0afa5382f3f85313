"""Our side: the house's own train step and forward pass, and the same around plain linen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import plain_linen, primitives_jax
from experiments.benchmarks.contestants import Contestant, Facts
from experiments.benchmarks.workloads import LEARNING_RATE, MEAN, STD
from segzoo import assembly, cost, parallel, provenance, registry, tasks
from segzoo.allocator import keep_freed_memory
from segzoo.compiler import compile_sooner
from segzoo.data.made import MadeDataset
from segzoo.data.pipeline import train_batches
from segzoo.data.spec import DatasetSpec
from segzoo.experiment import Experiment
from segzoo.optim import Optimizer
from segzoo.train import create_state, make_train_step


class House(Contestant):
    """segzoo on one device of jax."""

    packages: ClassVar[tuple[str, ...]] = ("jax", "jaxlib", "flax")

    def __init__(self) -> None:
        keep_freed_memory()  # as `segzoo train` does
        compile_sooner()

    def platform(self) -> str:
        """Returns "cpu" or "gpu"."""
        return jax.default_backend()

    def provenance(self) -> Facts:
        """Returns device, versions, commit and date."""
        return provenance.describe()

    def synchronize(self, result: Any) -> None:
        """Waits for all arrays of a result."""
        jax.block_until_ready(result)

    def device_peak(self) -> int | None:
        """Returns the allocator's peak, None on a CPU."""
        stats = jax.devices()[0].memory_stats() if self.platform() != "cpu" else None
        return None if stats is None else int(stats["peak_bytes_in_use"])

    def model(self, workload: Facts, axis_name: str | None) -> nn.Module:
        """Returns the workload's network."""
        return assembly.build_model(_experiment(workload), _spec(workload), axis_name)

    def train_step(self, workload: Facts) -> Facts:
        """Builds the step of `segzoo.train`, its state donated, on a made-up batch."""
        return self._facts(workload, self._prepare(workload))

    def inference(self, workload: Facts) -> Facts:
        """Builds the jitted forward pass, from uint8 images to float32 logits."""
        spec, model = _spec(workload), self.model(workload, None)
        shape = (*workload["size"], workload["channels"])
        optimizer = Optimizer().build(1)
        variables = create_state(_experiment(workload), model, optimizer, shape).variables
        image = jax.device_put(_batch(workload, spec)["image"])

        @jax.jit
        def forward(variables: Any, image: jax.Array) -> Any:
            return model.apply(variables, assembly.normalise(image, spec))

        self.run = lambda: forward(variables, image)
        return self._facts(workload, _count(variables["params"]))

    def primitive(self, name: str, shape: Sequence[int], dtype: str, backward: bool) -> Facts:
        """Builds an operation of `segzoo.ops`."""
        return self._primitive(primitives_jax.OURS, name, shape, dtype, backward)

    def product(self, side: int, dtype: str) -> Facts:
        """Builds the product of two square matrices."""
        rng = np.random.default_rng(0)
        a, b = (jnp.asarray(rng.normal(size=(side, side)), dtype) for _ in range(2))
        multiply = jax.jit(jnp.matmul)
        self.run = lambda: multiply(a, b)
        return {}

    def first_step(self, workload: Facts) -> Facts:
        """Trains one step; returns its `seconds` with its compilation, and those of the `state`."""
        begin = time.perf_counter()
        self._prepare(workload)
        state = time.perf_counter() - begin
        return {"state": state, "seconds": self.block(1)}

    def programs(self, sizes: Sequence[Sequence[int]]) -> int:
        """Predicts images of many sizes; returns how many programs were compiled for them."""
        from experiments.benchmarks.compile import count_programs

        return count_programs([tuple(size) for size in sizes])

    def _prepare(self, workload: Facts) -> int:
        """Builds it, and returns the number of parameters."""
        experiment, spec = _experiment(workload), _spec(workload)
        model = self.model(workload, parallel.AXIS)
        optimizer = experiment.optimizer.build(experiment.steps)
        task = tasks.for_dataset(spec.task, spec.num_classes, parallel.AXIS)
        shape = (*workload["size"], workload["channels"])
        state = parallel.replicate(create_state(experiment, model, optimizer, shape))
        step = parallel.data_parallel(
            make_train_step(experiment, model, optimizer, task, spec, None, parallel.AXIS),
            donate_state=True,
        )
        batch = parallel.shard_batch(_batch(workload, spec))
        parameters = _count(state.params)

        def run() -> Any:
            nonlocal state
            state, metrics = step(state, batch)
            return metrics

        self.run = run
        return parameters

    def _primitive(
        self, table: Any, name: str, shape: Sequence[int], dtype: str, backward: bool
    ) -> Facts:
        self.run = primitives_jax.build(table[name], name, shape, dtype, backward)
        return {}

    def _facts(self, workload: Facts, parameters: int) -> Facts:
        model = assembly.build_model(_experiment(workload), _spec(workload), None)
        size, channels, batch = workload["size"], workload["channels"], workload["batch"]
        macs = cost.measure(model, tuple(size), channels, batch).macs
        return {"parameters": parameters, "macs": macs}


class PlainLinen(House):
    """The same step around networks written with linen's own layers, as linen's examples are."""

    def model(self, workload: Facts, axis_name: str | None) -> nn.Module:
        """Returns the workload's network, of linen's layers."""
        return plain_linen.build(workload)

    def primitive(self, name: str, shape: Sequence[int], dtype: str, backward: bool) -> Facts:
        """Builds an operation of linen or lax."""
        return self._primitive(primitives_jax.PLAIN, name, shape, dtype, backward)


def _count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _experiment(workload: Facts) -> Experiment:
    return Experiment(
        name="benchmarks",
        model=workload["model"],
        dataset="made-up",
        steps=1_000_000,
        batch_size=workload["batch"],
        model_args=workload["model_args"],
        optimizer=Optimizer("adam", LEARNING_RATE),
        dtype=workload["dtype"],
    )


def _spec(workload: Facts) -> DatasetSpec:
    classes, channels = workload["classes"], workload["channels"]
    names = ["background", *(f"class {k}" for k in range(1, classes))]
    return DatasetSpec(
        name="made-up",
        task=registry.entry(workload["model"]).task,
        class_names=tuple(names),
        mean=(MEAN,) * channels,
        std=(STD,) * channels,
    )


def _batch(workload: Facts, spec: DatasetSpec) -> dict[str, np.ndarray]:
    """A batch as the pipeline gives it."""
    source = MadeDataset(spec, tuple(workload["size"]), {"train": workload["batch"]}).source(
        "train"
    )
    with train_batches(source, batch_size=workload["batch"], seed=0, threads=0) as batches:
        return dict(next(batches))
