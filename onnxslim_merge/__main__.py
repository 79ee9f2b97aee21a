"""`python -m onnxslim_merge`."""

from onnxslim_merge.cli import main

raise SystemExit(main())
