"""diffseg evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffseg_cli.choices import (
    OUTPUT,
    ModelChoice,
)
from diffseg_cli.cli import console, options

if TYPE_CHECKING:
    from diffseg_cli.evaluation.benchmark import Benchmark
    from diffseg_cli.evaluation.summary import EpisodeResult

EXAMPLES = """Examples:

  diffseg evaluate --root my_classes/ --shots 1 --peer prototype --out report/

  diffseg evaluate --dataset pascal-5i --root VOCdevkit --workers 4 --out voc/"""

DATA, EPISODES, WORK = "Data", "Episodes", "Work"  # panels of the help
SHOWN = 4  # best, median and worst episodes each in the report


def evaluate(
    root: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder of the data set; never downloaded.", rich_help_panel=DATA),
    ],
    dataset: Annotated[
        Literal["folder", "pascal-5i", "coco-20i", "coco-40-20-20", "fss-1000"],
        typer.Option(metavar="NAME", help=options.DATASET_HELP, rich_help_panel=DATA),
    ] = "folder",
    fold: Annotated[
        str | None,
        typer.Option(metavar="0..3|all", help="Fold to measure. Default: all.", rich_help_panel=DATA),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Split to measure. Default: test; all of a folder.", rich_help_panel=DATA
        ),
    ] = None,
    sources: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these sources of a folder's index.csv.", rich_help_panel=DATA),
    ] = None,
    shots: Annotated[
        int, typer.Option(min=1, metavar="N", help="Supports per episode.", rich_help_panel=EPISODES)
    ] = 1,
    runs: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Repetitions, each with new episodes.", rich_help_panel=EPISODES
        ),
    ] = 1,
    episodes_per_class: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Per run. Default: the protocol's.", rich_help_panel=EPISODES),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the episodes.", rich_help_panel=EPISODES)
    ] = 0,
    episodes_in: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Run the episodes listed in this file.", rich_help_panel=EPISODES),
    ] = None,
    episodes_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the list of episodes, for other programs.", rich_help_panel=EPISODES
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also run this method on the same episodes: prototype, attention, seggpt or matcher-lite; "
            "repeat for several.",
            rich_help_panel=WORK,
        ),
    ] = None,
    peer_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Weights of these methods. Default: the hub's local cache.",
            rich_help_panel=WORK,
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, metavar="N", help="Processes on this machine.", rich_help_panel=WORK)
    ] = 1,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Work here, or on a Ray cluster.", rich_help_panel=WORK),
    ] = "local",
    *,
    model: ModelChoice,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for report, record and plot; a stopped run goes on there.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT),
    ] = False,
) -> None:
    """Measure a model on labelled images, beside other methods and published figures.

    Every episode is drawn as the protocol of the data set says, so that the
    figures compare with published ones.
    """
    with console.working("Loading the model and the data set"):
        from diffseg_cli.datasets import PROTOCOLS
        from diffseg_cli.evaluation.benchmark import Benchmark, Plan, check_peers, choose_folds
        from diffseg_cli.evaluation.spread import share_device

        plan = Plan(
            root=str(root),
            dataset=dataset,
            folds=choose_folds(dataset, fold),
            split=split,
            sources=tuple(sources.split(",")) if sources else (),
            shots=shots,
            runs=runs,
            seed=seed,
            episodes_per_class=episodes_per_class or PROTOCOLS[dataset].episodes_per_class,
            peers=check_peers(peer or []),
            peer_weights=str(peer_weights) if peer_weights else None,
            episodes_in=str(episodes_in) if episodes_in else None,
            model=model,
        )
        benchmark = Benchmark(share_device(plan))
    if episodes_out:
        from diffseg_cli.evaluation.episode_list import write_list

        write_list(episodes_out, benchmark.about(), benchmark.lines)
    results = _run(benchmark, out, workers, ray=engine == "ray")
    if results is not None:
        record = benchmark.record(results)
        console.show_evaluation(record, as_json=json)
        if out:
            _write_report(benchmark, record, results, out)


def _run(
    benchmark: "Benchmark", out: Path | None, workers: int, *, ray: bool
) -> "list[EpisodeResult] | None":
    from diffseg_cli.evaluation.spread import collect, run_benchmark, spread_over_machines

    running = run_benchmark(benchmark, out, workers=workers, ray=ray)
    results = list(console.track(running, len(benchmark.tasks), "episodes"))
    return collect(benchmark, out) if out and spread_over_machines() else results


def _write_report(
    benchmark: "Benchmark", record: dict[str, object], results: "list[EpisodeResult]", out: Path
) -> None:
    from diffseg_cli.evaluation.report import REPORT, write_report
    from diffseg_cli.evaluation.summary import telling_episodes

    with console.working("Drawing the report"):
        telling = telling_episodes(results, "model", SHOWN)
        pictures = {
            name: [(result, benchmark.illustrate(result)) for result in chosen]
            for name, chosen in telling.items()
        }
        write_report(out, record, pictures)
    console.say(f"Report: {out / REPORT}")
