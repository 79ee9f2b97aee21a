"""Mean and mean square of channels at the inputs of their consumers: in closed form behind BatchNormalization
(`closed_form`), measured on calibration or synthetic inputs elsewhere (`measured`). `Statistics` serves both.
"""

from onnxslim_merge.statistics.moments import Moments, Place, Statistics

__all__ = ["Moments", "Place", "Statistics"]
