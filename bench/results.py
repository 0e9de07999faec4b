"""Where measured results are kept: bench/results/serving-<date>.json, a key for each kind."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def record(name: str, result: dict[str, Any], folder: Path = ROOT / "bench" / "results") -> Path:
    """Add one run's result to today's file, with the commit and the machine's load (1 minute)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"serving-{datetime.date.today().isoformat()}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    load = round(os.getloadavg()[0], 1)
    results[name] = {**result, "commit": commit, "load_average": load}
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path
