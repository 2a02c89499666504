"""diffseg bench."""

from pathlib import Path
from typing import Annotated, Any

from diffseg_cli.choices import MODEL, OUTPUT, ModelChoice, Option
from diffseg_cli.cli import console

EXAMPLES = """Examples:

  diffseg bench --repeats 20 --out bench/

  diffseg bench --model kandinsky-2-2 --random-weights --device cuda --json"""

WORK = "Work"  # panel of the help


def bench(
    *,
    model: ModelChoice,
    random_weights: Annotated[
        bool, Option("Measure at full size without the model's files; its answers mean nothing.", MODEL)
    ] = False,
    image_size: Annotated[
        int | None,
        Option(
            "Size at which the model sees images, a multiple of 64. Default: its own.", MODEL, metavar="PX"
        ),
    ] = None,
    batch_size: Annotated[int, Option("Queries at once.", WORK, metavar="N", least=1)] = 1,
    shots: Annotated[int, Option("Number of supports.", WORK, metavar="N", least=1)] = 1,
    repeats: Annotated[int, Option("Timed runs, after one to warm up.", WORK, metavar="N", least=1)] = 10,
    processor_time: Annotated[
        bool, Option("Report processor time instead of wall time, for a CPU that is busy.", WORK)
    ] = False,
    out: Annotated[
        Path | None, Option("Folder for record and chart.", OUTPUT, flags=("--out", "-o"), metavar="DIR")
    ] = None,
    json: Annotated[bool, Option("Print one JSON object.", OUTPUT)] = False,
) -> None:
    """Time every stage, and compare it with what this machine could do.

    Figures are for one support and one query: read from a file, searched and
    written as `diffseg segment` does. The undivided run shows what timing the
    stages one by one costs. FLOP counts matrix products and convolutions; the
    ceiling is the fastest square matrix product on the same device.
    """
    if out:
        from diffseg_cli.files import check_folder

        check_folder(out)
    with console.working("Measuring"):
        from diffseg_cli.bench.measure import measure
        from diffseg_cli.bench.subject import prepare_segmenter

        segmenter = prepare_segmenter(model, random_weights=random_weights, image_size=image_size)
        console.say(f"Using {segmenter.description}.")
        record = measure(
            segmenter,
            shots=shots,
            batch_size=batch_size,
            repeats=repeats,
            random_weights=random_weights,
            processor_time=processor_time,
        )
    _show(record, as_json=json)
    if out:
        _write(record, out)


def _show(record: dict[str, Any], *, as_json: bool) -> None:
    """One JSON object, or a table a half of the work."""
    if as_json:
        console.result_json(record)
        return
    from diffseg_cli.bench.chart import form_flop, form_seconds, summary

    ceiling = record["ceiling"]
    console.result(summary(record))
    console.result(
        f"ceiling {form_flop(ceiling['flop_per_second'])}/s, median of {record['repeats']} runs, "
        f"{record['clock']} time"
    )
    for half in ("support", "query"):
        figures = record[half]
        total = figures["sum"]["seconds"]
        console.result(
            f"\n{f'one {half}':<12}{'time':>10}  {'middle half':<21}{'share':>6}"
            f"{'FLOP':>14}{'of ceiling':>12}{'peak':>10}"
        )
        rows = [
            *((row["stage"], row) for row in figures["stages"]),
            ("sum", figures["sum"]),
            ("undivided", figures["whole"]),
        ]
        for name, row in rows:
            spread = f"{form_seconds(row['low'])} to {form_seconds(row['high'])}"
            work = f"{form_flop(row['flop']):>14}{row['ceiling_share']:>12.1%}" if row["flop"] else " " * 26
            peak = row.get("peak_bytes")
            memory = f"{peak / 2**20:>6.0f} MiB" if peak else ""
            console.result(
                f"  {name:<10}{form_seconds(row['seconds']):>10}  {spread:<21}{row['seconds'] / total:>6.1%}"
                f"{work}{memory}".rstrip()
            )


def _write(record: dict[str, Any], out: Path) -> None:
    from diffseg_cli.bench.chart import draw_chart
    from diffseg_cli.files import write_whole
    from diffseg_cli.results.annotations import json_bytes
    from diffseg_cli.results.render import write_image

    write_whole(out / "bench.json", json_bytes(record, indent=2))
    write_image(out / "bench.png", draw_chart(record))
    for name in ("bench.json", "bench.png"):
        console.say(f"Wrote {out / name}.")
