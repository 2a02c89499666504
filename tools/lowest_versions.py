"""Run the Kandinsky tests with the lowest versions of everything that pyproject.toml allows.

    python -m tools.lowest_versions /tmp/lowest --torch-index https://download.pytorch.org/whl/cpu

Makes a virtual environment in the folder (about 2 GB with the CPU build of torch; Python 3.10 to 3.12, later
ones have no wheels of these versions), or uses the one that is there, and runs the tests in it. What follows
`--` goes to pytest instead of the usual files.
"""

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
# The first release at each lower bound of pyproject.toml; a test compares the two.
LOWEST = {
    "torch": "2.7.0",
    "diffusers": "0.35.0",
    "transformers": "4.56.0",
    "huggingface-hub": "0.34.0",
    "typer": "0.26.0",
    "rich": "13.8.0",
    "pillow": "10.3.0",
    "numpy": "1.26.0",
    "opencv-contrib-python-headless": "4.9.0.80",
    "safetensors": "0.5.0",
    "pycocotools": "2.0.8",
}
RUNNERS = ("pytest", "pytest-timeout", "hypothesis")
TESTS = tuple(
    f"tests/test_{name}.py" for name in ("kandinsky", "backbones", "hub", "cli_models", "precision")
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the virtual environment")
    parser.add_argument("--torch-index", metavar="URL", help="package index of torch; default pip's own")
    parser.add_argument("pytest", nargs="*", help=f"default: {' '.join(TESTS)}")
    options = parser.parse_args()
    python = options.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.is_file():
        venv.create(options.folder, with_pip=True)
        install = [str(python), "-m", "pip", "install"]
        index = ["--index-url", options.torch_index] if options.torch_index else []
        subprocess.run([*install, f"torch=={LOWEST['torch']}", *index], check=True)
        pins = [f"{package}=={version}" for package, version in LOWEST.items()]
        subprocess.run([*install, *pins, *RUNNERS], check=True)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    words = [str(python.absolute()), "-m", "pytest", *(options.pytest or TESTS)]
    sys.exit(subprocess.run(words, cwd=REPOSITORY, env=environment).returncode)


if __name__ == "__main__":
    main()
