"""What happens to the columns of removed channels: nothing, a mean in the bias, a donor, or both.

`solve` goes through cells and consumers; `donors` finds stand-ins as Neuron Merging does.
"""

from onnxslim_merge.compensation.donors import Donors, Search, find_donors
from onnxslim_merge.compensation.solver import Solution, Solver, solve

__all__ = ["Donors", "Search", "Solution", "Solver", "find_donors", "solve"]
