"""A model above 2 GB goes through: peak memory of the process tree against the model, and the time of each stage.

    python tools/large_model.py [--width 8192] [--layers 10] [--ratio 0.5] [--folder DIR]

Builds an MLP with external data (random weights; DIR needs three times its size), runs the command line on it and
samples the proportional set size of the tree: pages that processes share count once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper


def build(path: Path, width: int, layers: int) -> int:
    """Write the model and its data file; returns the size of both in bytes."""
    rng = np.random.default_rng(0)
    data = path.with_name(path.name + ".data")
    nodes, tensors, offset, last = [], [], 0, "x"
    with data.open("wb") as stream:
        for layer in range(layers):
            for name, shape in ((f"w{layer}", (width, width)), (f"b{layer}", (width,))):
                values = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(width))
                values.tofile(stream)
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", data.name), ("offset", offset), ("length", values.nbytes)):
                    tensor.external_data.add(key=key, value=str(value))
                tensors.append(tensor)
                offset += values.nbytes
            nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"g{layer}"], name=f"fc{layer}"))
            last = f"r{layer}"
            nodes.append(helper.make_node("Relu", [f"g{layer}"], [last], name=f"relu{layer}"))
    graph = helper.make_graph(
        nodes, "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", width])],
        tensors,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return offset + path.stat().st_size


def tree_bytes(root: int) -> int:
    """Proportional set size of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    total, todo = 0, [root]
    while todo:
        process = todo.pop()
        todo += children.get(process, [])
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def main() -> None:
    """Build, run, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("options", nargs="*", help="further options for the command line, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, output = Path(folder) / "large.onnx", Path(folder) / "small.onnx"
        size = build(source, arguments.width, arguments.layers)
        print(f"model {size / 2**30:.2f} GiB", flush=True)
        command = [sys.executable, "-m", "onnxslim_merge", str(source), str(output), "--verbose"]
        started = time.perf_counter()
        process = subprocess.Popen([*command, "--ratio", str(arguments.ratio), *arguments.options])
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(0.05)
        print(
            f"exit {process.returncode}, {time.perf_counter() - started:.0f} s, "
            f"peak {peak / 2**30:.2f} GiB = {peak / size:.2f} x the model"
        )


if __name__ == "__main__":
    main()
