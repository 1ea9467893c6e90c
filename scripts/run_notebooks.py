"""Runs the notebooks of the documentation, and writes their outputs into them as they come.

python scripts/run_notebooks.py [NOTEBOOK ...]

Cells with the tag `install` are not run: what they install is here already. Everything else is, without the network,
each notebook in an empty folder.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

__all__ = ["NOTEBOOKS", "CellExecutionError", "CellTimeoutError", "run"]

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
TIMEOUT_S = 300

# What a reader sees must not depend on who ran it: no downloads, no progress bars, and no advice to install widgets for
# these.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}


def run(path: Path, folder: Path, timeout_s: int = TIMEOUT_S) -> Any:
    """Return a notebook with fresh outputs; it runs in a folder.

    Raises:
        CellExecutionError: A cell raised an error.
        CellTimeoutError: A cell took too long.
    """
    notebook = nbformat.read(path, as_version=4)
    shown = copy.deepcopy(notebook)
    runnable = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", ())]
    notebook.cells = runnable
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        startup_timeout=timeout_s,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, **_ENVIRONMENT})
    fresh = {cell.id: cell for cell in runnable}
    shown.cells = [fresh.get(cell.id, cell) for cell in shown.cells]
    # The outputs are those of this version, of which the last part does not matter.
    version = ".".join(map(str, sys.version_info[:2]))
    shown.metadata["language_info"] = {"name": "python", "version": version}
    return shown


def main() -> int:
    """Run the notebooks and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS, metavar="NOTEBOOK")
    for path in parser.parse_args().notebooks:
        with tempfile.TemporaryDirectory() as folder:
            notebook = run(path.resolve(), Path(folder))
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
