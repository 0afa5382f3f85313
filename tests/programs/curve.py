"""Trains a small net on made-up data in one process of several; prints its curve as JSON.

Run by tests/test_multi_device.py, with the devices and processes given as arguments.
"""

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default="pmap")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--port", type=int)
    parser.add_argument("--evaluate", type=Path, help="another run, scored as well")
    arguments = parser.parse_args()

    from segzoo import parallel

    several = arguments.processes > 1
    parallel.initialize(
        cpu_devices=arguments.devices,
        coordinator_address=f"127.0.0.1:{arguments.port}" if several else None,
        num_processes=arguments.processes if several else None,
        process_id=arguments.process if several else None,
    )

    from segzoo import data, evaluate
    from segzoo.data.augment import Augment
    from segzoo.data.made import MadeDataset
    from segzoo.experiment import Experiment
    from segzoo.losses import Loss
    from segzoo.optim import Optimizer
    from segzoo.train import train

    experiment = Experiment(
        name="curve",
        model="unet",
        model_args={"width": 4, "depth": 1, "norm": "batch", "dropout": 0.3},
        dataset="camvid",
        steps=6,
        batch_size=4,
        loss=Loss(cross_entropy=1.0, dice=0.5),
        optimizer=Optimizer(name="sgd", learning_rate=0.05, momentum=0.9),
        augment=Augment(flip_horizontal=True, rotate=20.0, brightness=0.2, fill="void"),
        log_every=1,
        eval_every=3,
        checkpoint_every=3,
        pictures=0,
        boundary_f1=True,
    )
    dataset = MadeDataset(data.get("camvid").spec, (24, 32), {"train": 10, "val": 5, "test": 7})
    train(experiment, arguments.folder, dataset=dataset, backend=arguments.backend)
    scored = arguments.evaluate or arguments.folder
    record = evaluate.evaluate_checkpoint(scored, experiment, dataset)
    rows = [json.loads(line) for line in (arguments.folder / "metrics.jsonl").open()]
    result = {
        "losses": [row["loss"] for row in rows if row["split"] == "train"],
        "val": [row["loss"] for row in rows if row["split"] == "val"],
        "confusion": record["confusion"],
        "boundary_f1": record["scores"]["boundary_f1"],
    }
    sys.stdout.write(json.dumps(result) + "\n")
    if several:
        import jax

        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
