"""One run on one device, on four, and on two processes of two: the same numbers."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).parent / "programs" / "curve.py"
SECONDS = 240


def curves(folder, *, backend="pmap", devices=1, processes=1, evaluate=None):
    """Runs the program, in as many processes as told; returns what each of them found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(PROGRAM), str(folder), f"--backend={backend}"]
    command += [f"--devices={devices}", f"--processes={processes}", f"--port={port}"]
    command += [f"--evaluate={evaluate}"] if evaluate else []
    flags = os.environ["XLA_FLAGS"].split()  # without that for this process's devices
    flags = [flag for flag in flags if "device_count" not in flag]
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags)}
    running = [
        subprocess.Popen(
            [*command, f"--process={number}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        said = [process.communicate(timeout=SECONDS) for process in running]
    finally:
        for process in running:  # a stuck process of several takes no milder signal
            process.kill()
            process.wait()
    for process, (_, errors) in zip(running, said, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in said]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"devices": 1, "backend": "pmap"},
        {"devices": 4, "backend": "pmap"},
        {"devices": 4, "backend": "shard_map"},
        {"devices": 2, "processes": 2},
    ],
    ids=["pmap of 1", "pmap of 4", "shard_map of 4", "2 processes of 2"],
)
def test_devices_and_processes_do_not_change_a_run(tmp_path, one_device, how):
    folder, expected = one_device
    # Trained alike to rounding, which may tip a pixel: counts are compared on one run's weights.
    scored = shutil.copytree(folder, tmp_path / "scored")
    for found in curves(tmp_path / "run", evaluate=scored, **how):
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
        np.testing.assert_allclose(found["val"], expected["val"], rtol=1e-5)
        assert found["confusion"] == expected["confusion"]
        assert found["boundary_f1"] == expected["boundary_f1"]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    (found,) = curves(folder, backend="jit")
    assert len(found["losses"]) == 6
    assert found["losses"][-1] < found["losses"][0]
    return folder, found
