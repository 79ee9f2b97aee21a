"""What a run did, as one plain `Report` object, and the ways to show it: JSON and the terminal."""

from onnxslim_merge.report.model import Change, FileRef, GroupReport, RefusalReport, Report
from onnxslim_merge.report.terminal import Progress, progress, render

__all__ = ["Change", "FileRef", "GroupReport", "Progress", "RefusalReport", "Report", "progress", "render"]
