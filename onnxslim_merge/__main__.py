"""`python -m onnxslim_merge`, and the script of the same name."""

from __future__ import annotations

import sys


def start() -> int:
    """Run the command line; returns the exit code. An interrupt while it is imported, too, is one line."""
    try:
        from onnxslim_merge.cli import main
    except KeyboardInterrupt:
        print("onnxslim-merge: interrupted", file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    raise SystemExit(start())
