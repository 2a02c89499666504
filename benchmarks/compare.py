"""Contenders in one process on one device: time, FLOP, memory, and their ratio to this tool's.

    python -m benchmarks.compare --device cuda --batch-size 8 --out out/
    python -m benchmarks.compare --device cpu --only compact --only prototype
    python -m benchmarks.compare --tiny

Each is built, warmed up, measured and dropped before the next.
"""

import argparse
import gc
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import CONTENDERS, REFERENCES, Contender, Setting
from diffseg_cli.bench.chart import form_flop, form_seconds
from diffseg_cli.bench.measure import describe_machine
from diffseg_cli.bench.meters import count_flop, measure_ceiling, read_peak
from diffseg_cli.compute import limit_threads, read_time, resolve_device, resolve_dtype

WARM_UPS = 2
ON_CPU = ("compact", "prototype")  # the others take minutes per image there


def measure_contender(
    contender: Contender, device: torch.device, repeats: int, *, processor: bool = False
) -> dict[str, Any]:
    """Medians per image, FLOP per image, and the peak while queries run, weights included."""
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            support = contender.support()
            contender.query(support)
        read, peak = read_time(device, processor=processor), read_peak(device)
        spent: dict[str, list[float]] = {"support": [], "query": []}
        for _ in range(repeats):
            read()
            contender.support()
            spent["support"].append(read())
        if peak:
            peak()
        for _ in range(repeats):
            read()
            contender.query(support)
            spent["query"].append(read() / contender.batch_size)
        peak_bytes = peak() if peak else None
        return {
            "what": contender.what,
            "seconds": {name: statistics.median(values) for name, values in spent.items()},
            "fastest": {name: min(values) for name, values in spent.items()},
            "flop": {
                "support": count_flop(contender.support),
                "query": count_flop(lambda: contender.query(support)) / contender.batch_size,
            },
            "peak_bytes": peak_bytes,
            "weights_bytes": contender.weights_bytes,
        }


def compare(
    setting: Setting, names: Sequence[str], repeats: int, *, processor: bool = False
) -> dict[str, Any]:
    """The record of all, in the order given; one that does not fit the memory says so."""
    ceiling = measure_ceiling(setting.device, setting.dtype, processor=processor)
    rows: dict[str, Any] = {}
    for name in names:
        try:
            contender = CONTENDERS[name](setting)
            rows[name] = measure_contender(contender, setting.device, repeats, processor=processor)
        except torch.OutOfMemoryError:
            rows[name] = {"error": "out of memory"}
        contender = None
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
    return {
        "format": "diffseg-compare-1",
        **describe_machine(setting.device),
        "dtype": str(setting.dtype).removeprefix("torch."),
        "batch_size": setting.batch_size,
        "tiny": setting.tiny,
        "repeats": repeats,
        "clock": "processor" if processor else "wall",
        "ceiling_flop_per_second": max(ceiling.values()),
        "contenders": rows,
    }


def markdown(record: dict[str, Any]) -> str:
    """The record as a table; ratios are to this tool's row, above 1 where that is better."""
    lines = [
        f"{record['device']}, {record['dtype']}, batch {record['batch_size']}, ceiling "
        f"{form_flop(record['ceiling_flop_per_second'])}/s, torch {record['versions']['torch']}",
        "",
        "| | time per query | ratio | FLOP per query | of ceiling | peak memory | ratio | time per support |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in record["contenders"].items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | | | | |")
            continue
        base = record["contenders"].get(REFERENCES.get(name, "diffseg"), row)
        base = row if "error" in base else base
        seconds, peak = row["seconds"]["query"], row["peak_bytes"]
        share = row["flop"]["query"] / seconds / record["ceiling_flop_per_second"]
        support = form_seconds(row["seconds"]["support"])
        memory = "| |" if not peak else f"{peak / 2**30:.2f} GiB | {peak / base['peak_bytes']:.2f} |"
        lines.append(
            f"| {name}: {row['what']} | {form_seconds(seconds)} | {seconds / base['seconds']['query']:.2f} | "
            f"{form_flop(row['flop']['query'])} | {share:.0%} | {memory} {support} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", action="append", choices=list(CONTENDERS))
    parser.add_argument("--tiny", action="store_true", help="small networks of the same classes, for a try")
    parser.add_argument("--processor-time", action="store_true", help="as of diffseg bench")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    limit_threads()
    device = resolve_device(chosen.device)
    dtype = resolve_dtype(chosen.dtype, device)
    names = chosen.only or (list(CONTENDERS) if device.type != "cpu" or chosen.tiny else list(ON_CPU))
    setting = Setting(device, dtype, chosen.batch_size, chosen.tiny)
    record = compare(setting, names, chosen.repeats, processor=chosen.processor_time)
    print(markdown(record), end="")
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "compare.json").write_text(json.dumps(record, indent=2) + "\n")
        (chosen.out / "compare.md").write_text(markdown(record))


if __name__ == "__main__":
    main()
