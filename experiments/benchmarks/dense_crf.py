"""The dense CRF: time beside the authors' C++ code, memory, error of the lattice, gain.

    python -m experiments.benchmarks.dense_crf speed [--image street.jpg] [--record]
    python -m experiments.benchmarks.dense_crf refine RUN ... --record

`speed` refines noisy logits of an image at three sizes, ten iterations, ours and C++ (pydensecrf2,
where it is installed) in alternation on the same machine; the ratio is C++ over ours, so more than
1 is faster. Memory is the growth of a fresh process's peak. `refine` reads what `segzoo evaluate
RUN --boundary` and `segzoo evaluate RUN --crf` wrote. `--record` keeps the figures in
docs/dense-crf.json and puts them into docs/dense-crf.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from segzoo import provenance
from segzoo.files import write_atomically
from segzoo.ops.dense_crf import DenseCRF, dense_crf
from segzoo.ops.gaussian import Exact, appearance, normalized
from segzoo.ops.permutohedral import build, locate

RECORD, PAGE = Path("docs/dense-crf.json"), Path("docs/dense-crf.md")
SIZES = ((180, 240), (360, 480), (720, 960))
CLASSES = (11, 21)


def scene(size: tuple[int, int], classes: int, path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image, read or made up of soft noise, and noisy logits that follow it loosely."""
    rng = np.random.default_rng(0)
    if path:
        with Image.open(path) as opened:
            image = np.array(opened.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
    else:
        coarse = rng.integers(40, 216, (9, 12, 3)).astype(np.uint8)
        big = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.NEAREST)
        image = np.clip(np.array(big) + rng.normal(0, 4, (*size, 3)), 0, 255).astype(np.uint8)
    coarse_logits = rng.normal(0, 2, (18, 24, classes)).astype(np.float32)
    maps = [
        np.array(Image.fromarray(coarse_logits[..., k]).resize(size[::-1])) for k in range(classes)
    ]
    noise = rng.normal(size=(*size, classes))
    return image, (np.stack(maps, axis=-1) + noise).astype(np.float32)


def ours(image: np.ndarray, logits: np.ndarray, config: DenseCRF) -> np.ndarray:
    """Refines one image; the smoothness lattice of a size is kept from call to call."""
    return np.asarray(dense_crf(logits[None], image[None], config))[0]


def theirs(image: np.ndarray, logits: np.ndarray, config: DenseCRF) -> np.ndarray:
    """Does the same with the authors' C++ code."""
    import pydensecrf.densecrf as cpp

    height, width, classes = logits.shape
    crf = cpp.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-logits.reshape(-1, classes).T))
    crf.addPairwiseGaussian(sxy=config.smoothness_width, compat=config.smoothness_weight)
    crf.addPairwiseBilateral(
        sxy=config.appearance_width,
        srgb=config.appearance_color,
        rgbim=np.ascontiguousarray(image),
        compat=config.appearance_weight,
    )
    return np.array(crf.inference(config.iterations)).T.reshape(logits.shape)


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Returns wall-clock and processor seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(size: tuple[int, int], classes: int, path: str | None, rounds: int) -> dict[str, Any]:
    """Times both in alternation, and compares their answers."""
    image, logits = scene(size, classes, path)
    config = DenseCRF()
    began = time.perf_counter()
    mine = ours(image, logits, config)
    first = time.perf_counter() - began
    row: dict[str, Any] = {"size": list(size), "classes": classes}
    try:
        reference = theirs(image, logits, config)
    except ImportError:
        reference = None
    a, b = [], []
    for _ in range(rounds):
        a.append(timed(lambda: ours(image, logits, config)))
        if reference is not None:
            b.append(timed(lambda: theirs(image, logits, config)))
    row["seconds"] = median(wall for wall, _ in a)
    row["first_call_seconds"] = first
    if classes == CLASSES[-1]:
        row["peak_mib"] = peak("ours", size, classes, path)
    if reference is not None:
        row["cpp_seconds"] = median(wall for wall, _ in b)
        pairs = list(zip(a, b, strict=True))
        row["ratio_wall"] = median(y[0] / x[0] for x, y in pairs)
        row["ratio_processor"] = median(y[1] / x[1] for x, y in pairs)
        if classes == CLASSES[-1]:
            row["cpp_peak_mib"] = peak("theirs", size, classes, path)
        row["same_labels"] = float((mine.argmax(-1) == reference.argmax(-1)).mean())
    return row


def peak(which: str, size: tuple[int, int], classes: int, path: str | None) -> float:
    """Returns the growth of the peak memory of a process that refines one image, in MiB."""
    words = [sys.executable, "-m", "experiments.benchmarks.dense_crf", "child", which]
    words += [*map(str, size), str(classes), *([path] if path else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def child(which: str, size: tuple[int, int], classes: int, path: str | None) -> None:
    """Prints that growth."""
    small = scene((16, 16), classes, path)
    run = ours if which == "ours" else theirs
    run(*small, DenseCRF())  # loads what is loaded once
    image, logits = scene(size, classes, path)
    before = high_water()
    run(image, logits, DenseCRF())
    print((high_water() - before) / 1024)


def high_water() -> int:
    """Returns the most memory this process has held, in KiB (Linux)."""
    # The figure of getrusage is no use here: a process inherits its parent's.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def errors(path: str | None) -> list[dict[str, Any]]:
    """Compares the lattice with the exact form on small images."""
    rows = []
    for size, width, color in (
        ((30, 40), 10.0, 5.0),
        ((30, 40), 50.0, 5.0),
        ((60, 80), 10.0, 5.0),
        ((60, 80), 50.0, 3.0),
        ((60, 80), 50.0, 5.0),
        ((60, 80), 50.0, 20.0),
    ):
        image, logits = scene(size, 11, path)
        config = DenseCRF(appearance_width=width, appearance_color=color)
        got = ours(image, logits, config)
        expected = ours(image, logits, dataclasses.replace(config, method="exact"))
        features = jnp.asarray(appearance(image, width, color))
        values = jax.nn.softmax(jnp.asarray(logits).reshape(len(features), -1))
        lattice, exact = (
            normalized(kernel, len(features), "symmetric")(values)
            for kernel in (build(features), Exact(features))
        )
        one_pass = np.abs(np.asarray(lattice - exact))
        rows.append(
            {
                "size": list(size),
                "appearance_width": width,
                "appearance_color": color,
                "pass_mean_error": float(one_pass.mean()),
                "pass_max_error": float(one_pass.max()),
                "mean_error": float(np.abs(got - expected).mean()),
                "max_error": float(np.abs(got - expected).max()),
                "same_labels": float((got.argmax(-1) == expected.argmax(-1)).mean()),
            }
        )
    return rows


def speed(path: str | None, rounds: int) -> dict[str, Any]:
    """Measures everything and prints it."""
    rows = []
    for size in SIZES:
        for classes in CLASSES:
            rows.append(compare(size, classes, path, rounds))
            print(json.dumps(rows[-1]), flush=True)
    image, _ = scene(SIZES[1], 2, path)
    vertices = int(locate(jnp.asarray(appearance(image, 50.0, 5.0))).count)
    found = errors(path)
    for row in found:
        print(json.dumps(row))
    what = "a photograph" if path else "made-up scenes"
    return {
        "image": what,
        "vertices_360x480": vertices,
        "rounds": rounds,
        "times": rows,
        "errors": found,
        **provenance.describe(),
    }


def refine(folders: Sequence[str]) -> dict[str, Any]:
    """Collects scores before and after, as `segzoo evaluate` wrote them."""
    rows = []
    for folder in map(Path, folders):
        before = json.loads((folder / "results.json").read_text())
        after = json.loads((folder / "results-crf.json").read_text())
        search = json.loads((folder / "crf.json").read_text())
        fields = ("miou", "pixel_accuracy", "class_accuracy", "boundary_f1")
        rows.append(
            {
                **{name: before[name] for name in ("dataset", "model", "split", "image_size")},
                **{name: before[name] for name in ("model_args", "steps", "device", "date")},
                "commit": after["commit"],
                "before": {name: before["scores"][name] for name in fields},
                "after": {name: after["scores"][name] for name in fields},
                "config": after["crf"],
                "search": {n: search[n] for n in ("split", "images", "miou", "miou_without")},
            }
        )
        print(json.dumps(rows[-1]))
    return {"runs": rows}


def tables(record: dict[str, Any]) -> dict[str, str]:
    """Returns the Markdown for each part of the page."""
    parts = {}
    if "speed" in record:
        measured = record["speed"]
        lines = [
            "| size | classes | seconds | C++ | C++ / ours | in processor time | first call, s "
            "| peak, MiB | C++ | same labels |",
            "| --- " + "| ---: " * 9 + "|",
        ]
        for row in measured["times"]:
            cells = ["x".join(map(str, row["size"])), str(row["classes"]), f"{row['seconds']:.2f}"]
            if "cpp_seconds" in row:
                cells += [f"{row['cpp_seconds']:.2f}", f"{row['ratio_wall']:.2f}"]
                cells += [f"{row['ratio_processor']:.2f}"]
            else:
                cells += ["-"] * 3
            cells.append(f"{row['first_call_seconds']:.1f}")
            cells += [f"{row[n]:.0f}" if n in row else "-" for n in ("peak_mib", "cpp_peak_mib")]
            cells.append(f"{100 * row['same_labels']:.2f} %" if "same_labels" in row else "-")
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", _source(measured, f"{measured['image']}, median of {measured['rounds']}")]
        parts["speed"] = "\n".join(lines)
        lines = [
            "| size | sigma_alpha | sigma_beta | one pass, mean | largest | marginals, mean "
            "| largest | same labels |",
            "| --- " + "| ---: " * 7 + "|",
        ]
        for row in measured["errors"]:
            lines.append(
                f"| {'x'.join(map(str, row['size']))} | {row['appearance_width']:g} "
                f"| {row['appearance_color']:g} | {row['pass_mean_error']:.4f} "
                f"| {row['pass_max_error']:.3f} | {row['mean_error']:.4f} | {row['max_error']:.3f} "
                f"| {100 * row['same_labels']:.2f} % |"
            )
        parts["errors"] = "\n".join(lines)
    if "refine" in record:
        lines = [
            "| data | model | size | mIoU | with CRF | boundary F1 | with CRF | w1, sigma_alpha, "
            "sigma_beta | val mIoU | with CRF |",
            "| --- | --- | --- " + "| ---: " * 7 + "|",
        ]
        for row in record["refine"]["runs"]:
            before, after, config = row["before"], row["after"], row["config"]
            chosen = [config[f"appearance_{n}"] for n in ("weight", "width", "color")]
            size = "x".join(map(str, row["image_size"])) if row["image_size"] else "own"
            scores = [before["miou"], after["miou"], before["boundary_f1"], after["boundary_f1"]]
            val = [row["search"]["miou_without"], row["search"]["miou"]]
            cells = [f"{row['dataset']} {row['split']}", row["model"], size]
            cells += [f"{100 * score:.2f}" for score in scores]
            cells += [", ".join(f"{value:g}" for value in chosen)]
            cells += [f"{100 * score:.2f}" for score in val]
            lines.append("| " + " | ".join(cells) + " |")
        parts["refine"] = "\n".join(lines)
    return parts


def _source(record: dict[str, Any], how: str) -> str:
    return f"{how}; {record['device']}, jax {record['versions']['jax']}, {record['date']}."


def write(name: str, measured: dict[str, Any]) -> None:
    """Keeps a part of the record, and renews the page's tables."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[name] = measured
    write_atomically(RECORD, (json.dumps(record, indent=2) + "\n").encode())
    page = PAGE.read_text(encoding="utf-8")
    for part, table in tables(record).items():
        begin, end = f"<!-- {part}:begin -->", f"<!-- {part}:end -->"
        head, _, rest = page.partition(begin)
        page = f"{head}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    write_atomically(PAGE, page.encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and records when asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("speed")
    add.add_argument("--image")
    add.add_argument("--rounds", type=int, default=7)
    add.add_argument("--record", action="store_true")
    add = commands.add_parser("refine")
    add.add_argument("folders", nargs="+")
    add.add_argument("--record", action="store_true")
    add = commands.add_parser("child")
    add.add_argument("which", choices=("ours", "theirs"))
    add.add_argument("numbers", nargs=3, type=int)
    add.add_argument("image", nargs="?")
    args = parser.parse_args(arguments)
    if args.command == "child":
        height, width, classes = args.numbers
        child(args.which, (height, width), classes, args.image)
        return
    measured = speed(args.image, args.rounds) if args.command == "speed" else refine(args.folders)
    if args.record:
        write(args.command, measured)


if __name__ == "__main__":
    main()
