"""From the start of a process to its files on disk: `diffseg segment` on an example, and where imports go.

python -m benchmarks.cold_start --repeats 5
python -m benchmarks.cold_start --imports
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
BIRD = REPOSITORY / "examples" / "bird"
SHOWN = 12  # slowest imports


def segment_command(out: Path) -> list[str]:
    """The README's first command."""
    support = ["--support", str(BIRD / "support.jpg"), "--mask", str(BIRD / "support_mask.png")]
    command = [sys.executable, "-m", "diffseg_cli", "segment", *support]
    return [*command, "--query", str(BIRD / "query.jpg"), "--out", str(out)]


def time_cold(repeats: int) -> tuple[list[float], list[float]]:
    """Wall seconds and processor seconds of each run, with files that were read before in main memory."""
    walls, processors = [], []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(repeats):
            out = Path(folder) / str(index)
            before, start = os.times(), time.perf_counter()
            subprocess.run(segment_command(out), cwd=REPOSITORY, check=True, capture_output=True)
            walls.append(time.perf_counter() - start)
            after = os.times()
            processors.append(
                after.children_user + after.children_system - before.children_user - before.children_system
            )
            assert len(list(out.iterdir())) == 3
    return walls, processors


def profile_imports() -> list[tuple[float, str]]:
    """Packages by the seconds their import took, those they import included; slowest first."""
    with tempfile.TemporaryDirectory() as folder:
        command = segment_command(Path(folder))
        command.insert(1, "-Ximporttime")
        done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    rows = []
    for line in done.stderr.splitlines():
        if line.startswith("import time:") and line.count("|") == 2:
            _, cumulative, name = line.removeprefix("import time:").split("|")
            if cumulative.strip().isdigit():
                rows.append((int(cumulative) / 1e6, name.rstrip()))
    own = [row for row in rows if "." not in row[1] or row[1].strip().startswith("diffseg_cli.")]
    return sorted(own, reverse=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--imports", action="store_true", help="list imports instead")
    chosen = parser.parse_args(arguments)
    if chosen.imports:
        for seconds, name in profile_imports()[:SHOWN]:
            print(f"{seconds:6.2f} s  {name.strip()}")
        return
    walls, processors = time_cold(chosen.repeats)
    print(
        f"start to files: median {statistics.median(walls):.2f} s of {len(walls)} ({min(walls):.2f} to "
        f"{max(walls):.2f}), processor time {statistics.median(processors):.2f} s, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
