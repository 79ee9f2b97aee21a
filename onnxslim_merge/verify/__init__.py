"""Proofs about the slimmed model.

Gates, without which nothing is written: same interface, equal to its full-size twin. What it lost and gained (fidelity,
speed) is measured and reported, and gates nothing.
"""
