"""Outside data that some benchmarks need; the project does not ship it."""

import os
import sys
from pathlib import Path


def shared_file(name: str) -> Path:
    """Ends the program where the file is absent."""
    path = Path(os.environ.get("PADNAS_SHARED_DATA", "../shared/data")) / name
    if not path.exists():
        sys.exit(f"This benchmark needs {path}. PADNAS_SHARED_DATA says in which folder it is.")
    return path
