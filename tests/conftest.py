"""Every test sees several CPU devices; the environment is set before jax reads it."""

import functools
import gc
import importlib.metadata
import importlib.util
import os
import re
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's CPU client dead-locks on collectives unless its pool has two threads per device.
os.environ.setdefault("NPROC", "16")
# A test process does something else every time, which is what keeping memory is not for.
os.environ["SEGZOO_KEEP_MEMORY"] = "0"
# Code that is optimised less, by older emitters, is ready much sooner. An unknown flag would end
# the process: the last of ours goes where it is known to be.
os.environ["XLA_FLAGS"] = " ".join(
    flag
    for flag in (
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # What programs add, in which tests would else find each other's compiled code no more.
        "--xla_backend_extra_options=-disable-lsr",
        "--xla_cpu_use_fusion_emitters=false"
        if importlib.metadata.version("jaxlib").startswith("0.10.")
        else "",
        os.environ.get("XLA_FLAGS", ""),  # of two that say otherwise the last counts
    )
    if flag
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# A shell without job control starts background commands with SIGINT ignored, and their children
# inherit that; the tests of Ctrl-C need it as in a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Looks for garbage less often.

    What has been traced and compiled lives on, millions of objects; looking them through takes a
    tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forgets compiled programs when they are many.

    Each holds some memory maps, of which Linux gives a process 65,530; the compiler then crashes.
    """
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > 16_000:
        jax.clear_caches()


@functools.lru_cache(maxsize=64)
def shapes_of(model, image_shape):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(image_shape))


@pytest.fixture
def filled():
    """`filled(model, image_shape)`: variables without the cost of `init`, every entry random."""

    def fill(model, image_shape, seed=0):
        rng = np.random.default_rng(seed)
        try:
            shapes = shapes_of(model, image_shape)
        except TypeError:  # what holds a list has no hash
            shapes = shapes_of.__wrapped__(model, image_shape)

        def draw(path, leaf):
            name = path[-1].key
            noise = rng.normal(size=leaf.shape)
            value = {
                "kernel": lambda: noise * np.sqrt(2 / np.prod(leaf.shape[:-1])),
                "scale": lambda: 1 + 0.1 * noise,
                "var": lambda: 1 + np.abs(noise),
            }.get(name, lambda: 0.1 * noise)()
            return jnp.asarray(value, leaf.dtype)

        return jax.tree_util.tree_map_with_path(draw, shapes)

    return fill


@pytest.fixture
def one_code():
    """`one_code(compiled, shape)`: how many fusions make an array of the shape, all of one code."""

    def renamed(code):
        names = {}
        return re.sub(r"%[\w.\-]+", lambda m: names.setdefault(m[0], f"%{len(names)}"), code)

    def count(compiled, shape):
        program = compiled.as_text()
        codes = []
        pattern = rf"= {re.escape(shape)}\S* fusion\(.*calls=%?([\w.\-]+)"
        for name in re.findall(pattern, program):
            body = program.partition(f"%{name} (")[2].partition("\n}")[0].partition("\n")[2]
            codes.append(renamed(re.sub(r", metadata=\{[^}]*\}", "", body)))
        assert len(set(codes)) == 1, codes
        return len(codes)

    return count


@pytest.fixture
def count_parameters():
    """`count_parameters(model, image_shape)`, by shapes alone."""

    def count(model, image_shape):
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(image_shape))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))

    return count


@pytest.fixture
def assert_same_function():
    """`assert_same_function(f, g, *args)`: equal values and equal gradients for every argument."""

    def check(f, g, *args, atol=1e-5):
        shape = jax.eval_shape(g, *args)
        noise = np.random.default_rng(1).normal(size=shape.shape)
        cotangent = jnp.asarray(noise, shape.dtype)

        def value_and_gradients(function):
            @jax.jit
            def run(cotangent, *args):
                value, pull = jax.vjp(function, *args)
                return value, pull(cotangent)

            return run(cotangent, *args)

        expected, references = value_and_gradients(g)
        got, gradients = value_and_gradients(f)
        np.testing.assert_allclose(got, expected, atol=atol)
        for gradient, reference in zip(gradients, references, strict=True):
            assert np.any(reference != 0)
            size = np.abs(reference).max()
            np.testing.assert_allclose(gradient / size, reference / size, atol=atol)

    return check


@pytest.fixture
def assert_all_learn():
    """`assert_all_learn(gradients)`: each is finite, and not zero everywhere."""

    def check(gradients):
        # Looked at by numpy: jax would compile a comparison for every shape.
        for path, gradient in jax.tree_util.tree_leaves_with_path(jax.device_get(gradients)):
            assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
            assert np.any(gradient != 0), jax.tree_util.keystr(path)

    return check


@pytest.fixture
def usual_emitters():
    """Options for `jax.jit`, where the older emitters round or flush what XLA's usual do not."""
    older = "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]
    return {"xla_cpu_use_fusion_emitters": True} if older else {}


@pytest.fixture
def bytes_for_gradient():
    """`bytes_for_gradient(loss, *args)`: what a compiled gradient needs beside its arguments."""

    def read_off(loss, *args, argnums=0):
        compiled = jax.jit(jax.grad(loss, argnums)).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    return read_off


@pytest.fixture(scope="module")
def compilation_cache(tmp_path_factory):
    """What a test compiles need not be compiled again by another of its module."""
    from jax.experimental.compilation_cache import compilation_cache

    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def tiny(compilation_cache):
    """`tests/programs/tiny.py`: a registered model, an experiment and data that train at once."""
    from segzoo import registry

    place = Path(__file__).parent / "programs" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del registry._ENTRIES["tiny"]
