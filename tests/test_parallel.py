import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo import parallel
from segzoo.errors import SegzooError


def body(state, batch):
    total = parallel.psum(jnp.sum(batch["x"] * state["w"]), parallel.AXIS)
    return {"w": state["w"] + 1}, total


@pytest.mark.parametrize("backend", ["pmap", "shard_map"])
def test_a_sum_is_over_all_devices_and_the_state_keeps_its_shape(backend):
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    state = parallel.replicate({"w": jnp.full(3, 2.0)})
    step = parallel.data_parallel(body, backend=backend, donate_state=True)
    state, total = step(state, parallel.shard_batch({"x": x}))
    assert float(total) == 2 * x.sum()
    assert state["w"].tolist() == [3.0, 3.0, 3.0]


def test_without_an_axis_the_sum_is_the_identity():
    tree = {"a": 1.0}
    assert parallel.psum(tree, None) is tree


def test_a_batch_is_cut_into_contiguous_parts():
    batch = parallel.shard_batch({"x": np.arange(8), "y": np.zeros((8, 2, 3))})
    assert batch["x"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert batch["y"].shape == (4, 2, 2, 3)
    assert len(batch["x"].sharding.device_set) == jax.local_device_count() == 4


def test_a_batch_must_divide_over_the_devices():
    assert parallel.local_batch_size(8) == 8
    for size in (0, 6, -4):
        with pytest.raises(SegzooError, match=f"batch_size is {size}; expected a positive multipl"):
            parallel.local_batch_size(size)


def test_an_unknown_backend_is_refused():
    with pytest.raises(SegzooError, match="backend is 'pjit'; expected one of 'pmap', 'jit'"):
        parallel.data_parallel(body, backend="pjit")


def test_one_process_needs_no_global_arrays():
    tree = {"w": jnp.ones(3)}
    assert parallel.to_global(tree) is tree
    assert parallel.to_local(tree) is tree
    assert parallel.any_process(True)
    assert not parallel.any_process(False)
    assert parallel.is_main_process()


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ({"cpu_devices": 0}, {}, "cpu_devices is 0"),
        ({"num_processes": 2}, {}, "need a coordinator_address (host:port)"),
        ({"process_id": 0}, {}, "need a coordinator_address (host:port)"),
        (
            {"coordinator_address": "127.0.0.1:1", "num_processes": 2, "process_id": 2},
            {},
            "process_id is 2; expected 0 to 1",
        ),
        (
            {},
            {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "abc"},
            "JAX_NUM_PROCESSES is 'abc'; expected an integer",
        ),
        ({"coordinator_address": "nowhere"}, {}, "cannot join the other processes at nowhere"),
    ],
)
def test_what_cannot_be_initialised_is_said(monkeypatch, arguments, environment, message):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NPROC", os.environ["NPROC"])  # put back afterwards
    with pytest.raises(SegzooError, match=re.escape(message)):
        parallel.initialize(**arguments)


def test_the_thread_pool_has_room_for_every_device(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    monkeypatch.setenv("NPROC", "2")
    assert parallel.must_block_every_step()
    parallel._raise_cpu_pool(None)
    assert int(os.environ["NPROC"]) >= 16
    assert not parallel.must_block_every_step()
