"""A model of the shared folder, analysed once and slimmed often: what the tools that compare settings share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort

from onnxslim_merge.channels.analysis import analyse_channels
from onnxslim_merge.model_io import build, load
from onnxslim_merge.pipeline import Run, Work
from onnxslim_merge.plan import SlimPlan
from onnxslim_merge.prepare import prepare
from onnxslim_merge.probe import probe_shapes
from onnxslim_merge.rewrite import rewrite
from onnxslim_merge.sampling import pick_samples
from onnxslim_merge.settings import Settings
from paper_tables import load_score

BATCH = 64


def analysed(path: Path, settings: Settings) -> Work:
    """A run of `settings` on the file, up to where channels are chosen."""
    run, source = Run(settings, lambda stage: None), load(path)
    graph = prepare(source)
    probes = probe_shapes(graph, source, {})
    samples = pick_samples(graph, source, settings, probes[0])
    return Work(run, source, graph, probes, samples, analyse_channels(graph, probes))


def outputs(model: bytes, inputs: np.ndarray, threads: int) -> Iterator[list[np.ndarray]]:
    """The outputs, batch by batch."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for i in range(0, len(inputs), BATCH):
        yield session.run(None, {name: inputs[i : i + BATCH]})


def classes(model: bytes, inputs: np.ndarray, threads: int) -> np.ndarray:
    """The class of every input, (n,)."""
    return np.concatenate([found[0].reshape(len(found[0]), -1).argmax(1) for found in outputs(model, inputs, threads)])


class Bench:
    """One model, slimmed without verification, which the tests and every real run do.

    inputs: the unlabelled calibration images, as the model expects them; reference: the classes that it gives them.
    threads: of ONNX Runtime; 0 = its own choice.
    """

    def __init__(self, shared: Path, model: str, task: str, images: int | None = None, threads: int = 0) -> None:
        """Read, analyse, and classify the first calibration `images` (None = all) with the original."""
        self.threads, self.score = threads, load_score(shared)
        self.path = shared / "models" / f"{model}.onnx"
        self.inputs: np.ndarray = self.score.prepare(task, self.score.images(task, "calib", images)[0])
        self.reference = self.classes(self.path.read_bytes(), self.inputs)
        self.work = analysed(self.path, Settings())

    def outputs(self, model: bytes, inputs: np.ndarray) -> Iterator[list[np.ndarray]]:
        """The outputs, batch by batch."""
        return outputs(model, inputs, self.threads)

    def classes(self, model: bytes, inputs: np.ndarray) -> np.ndarray:
        """The class of every input, (n,)."""
        return classes(model, inputs, self.threads)

    def plan(self, settings: Settings) -> SlimPlan:
        """The plan for these settings."""
        self.work.run.settings = settings
        self.work.decide()
        return self.work.plan(check=False)

    def model(self, plan: SlimPlan) -> bytes:
        """The slimmed file."""
        return build(rewrite(self.work.graph, plan), self.work.source).SerializeToString()

    def agreement(self, model: bytes) -> float:
        """Top-1 agreement with the original on the calibration images, in percent."""
        return 100 * float((self.classes(model, self.inputs) == self.reference).mean())
