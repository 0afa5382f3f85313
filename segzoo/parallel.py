"""Data parallelism: the only file that names `pmap`.

The body of a step takes `axis_name: str | None` and calls `psum` once, so the same function runs as
plain `jit` on one device, as `pmap` over the devices of every process, or under `jit(shard_map)`.
The state is not sharded and carries no device axis: it enters with `in_axes=None` and leaves with
`out_axes=None`, so a checkpoint holds it in its natural shape.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segzoo.errors import SegzooError, check_choice

AXIS = "batch"
Backend = Literal["pmap", "jit", "shard_map"]


def initialize(
    *,
    cpu_devices: int | None = None,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Prepares devices and processes; call it before any other use of JAX.

    Multi-host runs are started by giving the three distributed arguments, or by the environment
    variables `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

    Args:
        cpu_devices: split the CPU into that many virtual devices.
        coordinator_address: `host:port` of process 0.
        num_processes: how many processes take part.
        process_id: this one's number, from 0.

    Raises:
        SegzooError: when the distributed arguments are incomplete or contradict each other.
    """
    if cpu_devices is not None:
        if cpu_devices < 1:
            raise SegzooError(f"cpu_devices is {cpu_devices}; expected at least 1.")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    _raise_cpu_pool(cpu_devices)
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        if num_processes is not None or process_id is not None:
            raise SegzooError(
                "num_processes and process_id need a coordinator_address (host:port)."
            )
        return
    processes = _integer("JAX_NUM_PROCESSES", num_processes)
    process = _integer("JAX_PROCESS_ID", process_id)
    # On a managed cluster JAX finds both by itself; given ones must make sense.
    if processes is not None and process is not None and not 0 <= process < processes:
        raise SegzooError(f"process_id is {process}; expected 0 to {processes - 1}.")
    try:
        jax.distributed.initialize(address, processes, process)
    except (ValueError, RuntimeError) as error:
        reason = str(error).split("\n", 1)[0].rstrip(".")
        raise SegzooError(f"cannot join the other processes at {address} ({reason}).") from error


def _integer(variable: str, value: int | None) -> int | None:
    text = os.environ.get(variable)
    if value is not None or text is None:
        return value
    try:
        return int(text)
    except ValueError:
        raise SegzooError(f"{variable} is {text!r}; expected an integer.") from None


def _raise_cpu_pool(cpu_devices: int | None) -> None:
    """Gives XLA's CPU client two threads a device: with fewer, collectives dead-lock at random."""
    devices = cpu_devices or 1
    for flag in os.environ.get("XLA_FLAGS", "").split():
        name, _, value = flag.partition("=")
        if name == "--xla_force_host_platform_device_count" and value.isdigit():
            devices = max(devices, int(value))
    if devices > 1 or os.environ.get("JAX_COORDINATOR_ADDRESS"):
        wanted = max(16, 4 * devices)
        if int(os.environ.get("NPROC", "0") or 0) < wanted:
            os.environ["NPROC"] = str(wanted)


def must_block_every_step() -> bool:
    """Whether steps must be waited for one by one.

    Several devices of a CPU client whose thread pool is too small dead-lock when collective steps
    are queued; waiting for each one avoids it at a small cost in speed.
    """
    if jax.default_backend() != "cpu" or jax.device_count() == 1:
        return False
    return int(os.environ.get("NPROC", "0") or 0) < 2 * jax.local_device_count()


def psum(tree: Any, axis_name: str | None) -> Any:
    """Sums every leaf over the devices; the identity without an axis."""
    # On one device XLA would copy everything. The size of an axis is known when a step is traced.
    alone = axis_name is None or jax.lax.psum(1, axis_name) == 1
    return tree if alone else jax.lax.psum(tree, axis_name)


def all_gather(tree: Any, axis_name: str | None) -> Any:
    """Puts the devices' shares of a batch `[B, ...]` one after the other, on every device."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis_name, tiled=True), tree)


def _local_mesh() -> Mesh:
    return Mesh(np.asarray(jax.local_devices()), (AXIS,))


def replicate(tree: Any) -> Any:
    """Places a host tree on every local device, in its natural shape."""
    return jax.device_put(tree, NamedSharding(_local_mesh(), PartitionSpec()))


def local_batch_size(batch_size: int, name: str = "batch_size") -> int:
    """Returns how many of a global batch's examples belong to this process.

    Raises:
        SegzooError: when the batch does not divide evenly over all devices.
    """
    if batch_size < 1 or batch_size % jax.device_count():
        raise SegzooError(
            f"{name} is {batch_size}; expected a positive multiple of the {jax.device_count()} "
            "devices in use."
        )
    return batch_size // jax.process_count()


def shard_batch(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Splits a process's batch over its devices: `[B, ...]` to `[devices, B / devices, ...]`."""
    count = jax.local_device_count()
    sharding = NamedSharding(_local_mesh(), PartitionSpec(AXIS))

    def split(array: np.ndarray) -> jax.Array:
        return jax.device_put(array.reshape(count, -1, *array.shape[1:]), sharding)

    return {name: split(array) for name, array in batch.items()}


def data_parallel(
    body: Callable[..., Any], *, backend: Backend = "pmap", donate_state: bool = False
) -> Callable[[Any, dict[str, jax.Array]], Any]:
    """Compiles `body(state, batch)` to run on every device of every process.

    Args:
        body: pure function of the whole state and one device's share of the batch. Its outputs must
            be equal on all devices, which `psum` over `AXIS` makes them.
        backend: "pmap" for real work; "jit" (one device, no axis) and "shard_map" compile the same
            body in JAX's other two ways, and give the same numbers.
        donate_state: reuse the state's buffers for the new state.

    Returns:
        A function of (state, batch from `shard_batch`) with the outputs of `body`.
    """
    check_choice("backend", backend, ("pmap", "jit", "shard_map"))
    donate = (0,) if donate_state else ()
    if backend == "pmap":
        return jax.pmap(
            body, axis_name=AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=donate
        )

    def without_device_axis(state: Any, batch: dict[str, jax.Array]) -> Any:
        return body(state, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch))

    if backend == "jit":
        return jax.jit(without_device_axis, donate_argnums=donate)
    # check_vma=False: with the check on, psum'd gradients of replicated inputs are counted twice.
    mapped = jax.shard_map(
        without_device_axis,
        mesh=_local_mesh(),
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=donate)


def to_global(tree: Any) -> Any:
    """Turns each process's copy of a replicated tree into arrays that span all processes.

    Orbax writes only such arrays when several processes take part. With one process the tree is
    returned as it is.
    """
    if jax.process_count() == 1:
        return tree
    sharding = global_sharding()
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf), leaf.shape),
        tree,
    )


def to_local(tree: Any) -> Any:
    """The inverse of `to_global`, placed as the compiled steps expect it."""
    if jax.process_count() == 1:
        return tree
    return replicate(jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), tree))


def global_sharding() -> NamedSharding:
    """The sharding of a tree that every device of every process holds whole."""
    return NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS,)), PartitionSpec())


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process; all processes must call it together."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def is_main_process() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0


def log(message: str) -> None:
    """Writes a line to stderr, from the main process alone."""
    if is_main_process():
        sys.stderr.write(f"segzoo: {message}\n")
