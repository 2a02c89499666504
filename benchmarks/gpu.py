"""Everything that needs a GPU, in one go of about ten minutes on an H100, into one file.

    python -m benchmarks.gpu --out gpu/

Each step is a process of its own: one that fails or takes too long leaves its reason in the record and the
others alone. Nothing is downloaded, weights are random.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KANDINSKY = ("--model", "kandinsky-2-2", "--random-weights")
BENCH = ("diffseg_cli", "bench", "--device", "cuda")
COMPARE = ("benchmarks.compare", "--device", "cuda")
GROWTH = ("benchmarks.growth", "--device", "cuda", "--kandinsky", "full")

# name -> module and arguments, file it writes below its folder, seconds it may take
STEPS: dict[str, tuple[tuple[str, ...], str, int]] = {
    "stages, batch 8": ((*BENCH, *KANDINSKY, "--batch-size", "8"), "bench.json", 90),
    "stages, batch 1": ((*BENCH, *KANDINSKY), "bench.json", 90),
    "stages, offload, float16": (
        (*BENCH, *KANDINSKY, "--offload", "--dtype", "float16", "--repeats", "5"),
        "bench.json",
        120,
    ),
    "contenders, float16, batch 8": (
        (*COMPARE, "--dtype", "float16", "--batch-size", "8"),
        "compare.json",
        150,
    ),
    "contenders, bfloat16, batch 8": ((*COMPARE, "--batch-size", "8"), "compare.json", 120),
    "contenders, float16, batch 1": ((*COMPARE, "--dtype", "float16"), "compare.json", 90),
    "growth": (
        (*GROWTH, *(word for axis in ("shots", "batch", "size", "timesteps") for word in ("--axis", axis))),
        "growth.json",
        150,
    ),
    "compact, batch 8": ((*BENCH, "--batch-size", "8"), "bench.json", 60),
    "equal results": (("pytest", "-q", "-m", "gpu"), "", 90),
}


def run_step(name: str, out: Path) -> dict[str, Any]:
    """Run one; returns its record, or why there is none."""
    words, file, limit = STEPS[name]
    folder = out / name.replace(", ", "_").replace(" ", "_")
    command = [sys.executable, "-m", *words, *(["--out", str(folder)] if file else [])]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"command": command, "error": f"took more than {limit} s"}
    result: dict[str, Any] = {"command": command, "wall_seconds": time.perf_counter() - start}
    result["printed"] = done.stdout[-6000:]
    if done.returncode:
        return {**result, "error": done.stderr[-2000:]}
    return {**result, "record": json.loads((folder / file).read_text()) if file else None}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=list(STEPS))
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"format": "diffseg-gpu-1", "steps": {}}
    for name in chosen.only or STEPS:
        record["steps"][name] = run_step(name, chosen.out)
        (chosen.out / "gpu.json").write_text(json.dumps(record, indent=2) + "\n")  # so far, if time runs out
        step = record["steps"][name]
        print(f"{name}: {step.get('error') or 'done'}", flush=True)
        print(step.get("printed", ""), flush=True)


if __name__ == "__main__":
    main()
