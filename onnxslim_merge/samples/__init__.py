"""Calibration inputs: what the model's inputs look like, samples read from arrays or images, and synthetic ones.

Everything ends in one `Samples`: batches of feeds ready for the runtime, the true number of samples, and a line that
says where they came from.
"""

from onnxslim_merge.samples.augmenting import augmented, what_helps
from onnxslim_merge.samples.files import load_samples
from onnxslim_merge.samples.folders import find_files
from onnxslim_merge.samples.images import load_images, load_pillow
from onnxslim_merge.samples.pools import Pool
from onnxslim_merge.samples.specs import InputSpec, Samples, input_specs, is_float
from onnxslim_merge.samples.synthetic import image_axis, in_range, synthetic_samples

__all__ = [
    "InputSpec",
    "Pool",
    "Samples",
    "augmented",
    "find_files",
    "image_axis",
    "in_range",
    "input_specs",
    "is_float",
    "load_images",
    "load_pillow",
    "load_samples",
    "synthetic_samples",
    "what_helps",
]
