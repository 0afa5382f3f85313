"""Every test sees several CPU devices; the environment is set before jax reads it."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's CPU client dead-locks on collectives unless its pool has two threads per device.
os.environ.setdefault("NPROC", "16")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    ).strip()
