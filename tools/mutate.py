"""Change the code in a hundred places, one at a time, and see whether a test notices.

    python -m tools.mutate [WORD ...] [--part 1/4]

The changes stand in `tools/mutations.txt`; words choose those whose file or tests hold one of them. All is
done in a copy of the tree, whose tests must pass as they are. Libraries are imported once and every change is
tried in a fork, so this needs Linux or macOS. Exits with 1 where a change survives or no longer fits.
"""

import argparse
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
CHANGES = REPOSITORY / "tools" / "mutations.txt"
LIBRARIES = ("torch", "cv2", "PIL.Image", "typer", "rich", "safetensors.torch", "hypothesis", "pytest")
LIMIT = 600  # seconds; a change that hangs a test is noticed too


@dataclass(frozen=True)
class Mutation:
    """One change: in `file`, below the package, `old` becomes `new`, and `tests` should notice."""

    tests: str
    file: str
    old: str
    new: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("words", nargs="*", help="part of a file's name or of the tests")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="every N-th change, from the K-th on")
    options = parser.parse_args()
    index, count = map(int, options.part.split("/"))
    chosen = [
        each
        for each in read_mutations(CHANGES)
        if not options.words or any(word in f"{each.tests} {each.file}" for word in options.words)
    ]
    with tempfile.TemporaryDirectory(prefix="diffseg-mutate-") as folder:
        copy = _copy(Path(folder))
        for library in LIBRARIES:
            importlib.import_module(library)
        verdicts = [_try(copy, each) for each in chosen[index - 1 :: count]]
    noticed = verdicts.count("noticed")
    print(f"{noticed} of {len(verdicts)} noticed ({100 * noticed / max(len(verdicts), 1):.0f} %)")
    sys.exit(noticed < len(verdicts))


def read_mutations(path: Path) -> Iterator[Mutation]:
    """The changes of a file, whose head says how it is written."""
    tests, file, old, new = "", "", list[str](), list[str]()
    _, *blocks = path.read_text(encoding="utf-8").split("\n@ ")
    for block in blocks:
        tests, *lines = block.rstrip("\n").split("\n")
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if not line.startswith(("-", "+")):
                file = line
                continue
            (old if line[0] == "-" else new).append(line[1:])
            if line[0] == "+" and following[:1] != "+":
                yield Mutation(tests, file, "\n".join(old), "\n".join(new))
                old, new = [], []


def _copy(folder: Path) -> Path:
    """What git tracks, with links to the large folders that no change touches."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, names.split("\0")):
        if not name.startswith(("weights/", "examples/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    for name in ("weights", "examples"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


def _try(copy: Path, change: Mutation) -> str:
    """Run the tests with one change; says what came of it."""
    path, started = copy / "diffseg_cli" / change.file, time.monotonic()
    original = path.read_text(encoding="utf-8")
    if original.count(change.old) != 1:
        verdict = f"stale: stands there {original.count(change.old)} times"
    else:
        path.write_text(original.replace(change.old, change.new), encoding="utf-8")
        code = _run(copy, shlex.split(change.tests))
        path.write_text(original, encoding="utf-8")
        verdict = {0: "SURVIVED", 1: "noticed"}.get(code, f"broken: pytest says {code}")
    spent = time.monotonic() - started
    print(f"{verdict:10} {spent:4.0f} s  {change.file}: {change.old!r} -> {change.new!r}", flush=True)
    return verdict


def _run(copy: Path, tests: list[str]) -> int:
    """Exit code of pytest in a fork; 1 where it takes too long."""
    child = os.fork()
    if child == 0:
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        for name in [each for each in sys.modules if each.split(".")[0] in ("tools", "tests", "diffseg_cli")]:
            del sys.modules[name]
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return 1


if __name__ == "__main__":
    main()
