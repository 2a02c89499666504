"""The most memory a diffseg command takes (Linux): its own, and what it has mapped from files.

    python -m tools.peak_memory segment photo.jpg -c dog.dsc --model kandinsky-2-2

The system can drop what is mapped from a file and read it again; its own memory it can only swap out.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

INTERVAL = 0.02  # seconds between two looks
KINDS = {"own": "RssAnon", "mapped from files": "RssFile"}


def watch(command: list[str]) -> tuple[int, dict[str, int]]:
    """Run a command; its exit status, and the most bytes of each kind that it held."""
    process = subprocess.Popen(command)
    status, peaks = Path(f"/proc/{process.pid}/status"), dict.fromkeys(KINDS, 0)
    while process.poll() is None:
        text = status.read_text()  # of a zombie without the lines below
        for kind, name in KINDS.items():
            found = re.search(rf"{name}:\s+(\d+) kB", text)
            peaks[kind] = max(peaks[kind], int(found[1]) * 1024 if found else 0)
        time.sleep(INTERVAL)
    return process.returncode, peaks


def main() -> None:
    code, peaks = watch([sys.executable, "-m", "diffseg_cli", *sys.argv[1:]])
    times = os.times()
    figures = [f"{kind} {size / 1e9:.2f} GB" for kind, size in peaks.items()]
    print(", ".join([*figures, f"{times.children_user + times.children_system:.0f} s of processor"]))
    sys.exit(code)


if __name__ == "__main__":
    main()
