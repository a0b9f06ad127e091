"""Benchmarks are scripts that import each other by name: their folder is a path of imports here, too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
