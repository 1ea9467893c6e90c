"""Measure what `pip install marcorank` puts on the disk: python scripts/measure_install.py [EXTRA,...] ...

Each list of extras is installed from this checkout into a fresh environment. The sizes are those of the files of each
package, with the bytecode that pip makes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN_MB = 5
_SIZES = """
import json
from importlib.metadata import distributions

def size(file):
    path = file.locate()
    return path.stat().st_size if path.is_file() else 0

print(json.dumps({found.name: sum(map(size, found.files or ())) for found in distributions()}))
"""


def installed_mb(extras: str, wheel: Path) -> dict[str, float]:
    """Return the megabytes of each package in a fresh environment, without pip and setuptools."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python")
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        wanted = f"marcorank{f'[{extras}]' if extras else ''} @ {wheel.as_uri()}"
        subprocess.run([*pip, "install", "-q", "-c", ROOT / "constraints.txt", wanted], check=True)  # noqa: S603
        found = subprocess.run([python, "-c", _SIZES], check=True, capture_output=True, text=True)  # noqa: S603
    sizes = json.loads(found.stdout)
    return {name: size / 1e6 for name, size in sizes.items() if name not in {"pip", "setuptools"}}


def main() -> None:
    """Print a row for each list of extras."""
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
        subprocess.run(build, check=True)  # noqa: S603
        wheel = next(Path(folder).glob("*.whl"))
        for extras in sys.argv[1:] or [""]:
            sizes = installed_mb(extras.strip("-"), wheel)
            largest = sorted(sizes.items(), key=lambda row: -row[1])
            shown = ", ".join(f"{name} {size:.0f}" for name, size in largest if size >= SHOWN_MB)
            print(f"| `{extras}` | {sum(sizes.values()):,.0f} MB | {len(sizes)} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
