"""Makes the goldens and the record of the errors against other libraries, docs/parity.json.

python tests/oracle/make_goldens.py            all of them
python tests/oracle/make_goldens.py resnet     those whose names contain "resnet"

Needs the extra `oracle`; cases of libraries that are not installed are kept as they are.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import parity
import reference

import segzoo
from segzoo import provenance

RECORD = Path(__file__).parents[2] / "docs" / "parity.json"
PACKAGES = (
    *("jax", "jaxlib", "flax", "numpy", "torch", "torchvision", "timm"),
    "segmentation_models_pytorch",
)
PROTOCOL = (
    "The same random weights, running statistics and images (2 of each size) in both, float32 on "
    "the CPU. The largest absolute difference of any logit, and of any value of any feature map of "
    "the backbone, divided by the standard deviation of the reference's."
)


def compare(
    case: parity.Case, variances: Mapping[str, float] | None = None
) -> tuple[parity.Golden, dict[str, float]]:
    """Runs both networks of a case on all sizes.

    Args:
        case: the networks.
        variances: see `parity.Golden`; measured if None.

    Returns:
        The golden, and the largest error of the logits and of the stages (whole maps).
    """
    network = reference.build(case)
    names = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if variances is None:
        variances = reference.measure(case, network)
    reference.fill(network, variances)
    model = case.build()
    variables, _ = parity.our_tensors(case, model, variances)
    outputs = {}
    worst = {"logits": 0.0, "stages": 0.0}
    for size in case.sizes:
        image = parity.draw_image(size)
        expected = reference.outputs(case, network, image)
        found = parity.errors(parity.our_outputs(model, variables, image), expected)
        for name, error in found.items():
            kind = "stages" if name.startswith("stage") else "logits"
            worst[kind] = max(worst[kind], error)
        outputs[size] = parity.digest(expected)
    return parity.Golden(reference.describe(case), names, dict(variances), outputs), worst


def describe() -> dict[str, Any]:
    """Returns what the record says besides its rows."""
    versions = {"segzoo": segzoo.__version__, "python": platform.python_version()}
    return {
        "protocol": PROTOCOL,
        "versions": versions | {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": provenance.device(),
        "commit": provenance.commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def read() -> dict[str, Any]:
    """Returns the record, empty where there is none."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def write(models: Mapping[str, Any], stages: Mapping[str, Any]) -> None:
    """Writes the record, a line a row.

    Args:
        models: the rows of `parity.CASES`.
        stages: the rows of networks compared stage by stage.
    """
    lines = {"models": models, "stages": stages}
    parts = [json.dumps(describe(), indent=2).removesuffix("\n}")]
    for key, rows in lines.items():
        text = ",\n".join(
            f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()
        )
        parts.append(f"  {json.dumps(key)}: {{\n{text}\n  }}")
    RECORD.write_text(",\n".join(parts) + "\n}\n")


def main(pattern: str = "") -> None:
    """Makes the goldens whose names contain `pattern`."""
    record = read()
    models = dict(record.get("models", {}))
    for case in parity.CASES:
        if pattern not in case.name or importlib.util.find_spec(case.library) is None:
            continue
        golden, worst = compare(case)
        golden.write(parity.golden_path(case))
        sizes = [list(size) for size in case.sizes]
        rounded = {kind: float(f"{error:.2g}") for kind, error in worst.items()}
        models[case.name] = {"reference": golden.reference, "sizes": sizes, **rounded}
        print(f"{case.name}: logits {worst['logits']:.1e}, stages {worst['stages']:.1e}")
    known = [case.name for case in parity.CASES]
    write({name: models[name] for name in known if name in models}, record.get("stages", {}))


if __name__ == "__main__":
    main(*sys.argv[1:])
