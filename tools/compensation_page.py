"""docs/compensation.md from what tools/compensation.py and tools/compensation_rivals.py measured."""
