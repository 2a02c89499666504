"""The files of this repository, in a clone and in an unpacked source archive alike."""

import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def tracked_files() -> list[str]:
    """Paths from the repository's root, as git or the archive's own list has them."""
    if (REPOSITORY / ".git").exists():
        command = ["git", "ls-files"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()
    listed = (REPOSITORY / "diffseg.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines()
    return [path for path in listed if not path.startswith("diffseg.egg-info/")]
