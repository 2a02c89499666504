"""diffseg evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffseg_cli.choices import ModelChoice
from diffseg_cli.cli import console, options

if TYPE_CHECKING:
    from diffseg_cli.evaluation.benchmark import Benchmark
    from diffseg_cli.evaluation.summary import EpisodeResult

EXAMPLES = """Examples:

  diffseg evaluate --root my_classes/ --shots 1 --peer prototype --out report/

  diffseg evaluate --dataset pascal-5i --root VOCdevkit --fold all --runs 10 --workers 4 --out runs/voc"""

DATA, EPISODES, WORK = "Data", "Episodes", "Work"  # panels of the help
SHOWN = 4  # best, median and worst episodes each in the report


def evaluate(
    root: Annotated[
        Path, typer.Option(help="Where the data set lies; it is never downloaded.", rich_help_panel=DATA)
    ],
    dataset: Annotated[
        Literal["folder", "pascal-5i", "coco-20i", "coco-40-20-20", "fss-1000"],
        typer.Option(
            help="folder: one folder a class, NAME.jpg and its mask NAME.png.", rich_help_panel=DATA
        ),
    ] = "folder",
    fold: Annotated[
        str | None, typer.Option(metavar="0..3|all", help="Fold; default all.", rich_help_panel=DATA)
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Part of the data set; default test, or all of a folder.", rich_help_panel=DATA),
    ] = None,
    sources: Annotated[
        str | None,
        typer.Option(
            help="Only these sources of a folder's index.csv, comma separated.", rich_help_panel=DATA
        ),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Supports an episode.", rich_help_panel=EPISODES)] = 1,
    runs: Annotated[
        int, typer.Option(min=1, help="Repetitions with other episodes.", rich_help_panel=EPISODES)
    ] = 1,
    episodes_per_class: Annotated[
        int | None,
        typer.Option(min=1, help="In each run; default the protocol's.", rich_help_panel=EPISODES),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the list of episodes.", rich_help_panel=EPISODES)] = 0,
    episodes_in: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Run this list of episodes.", rich_help_panel=EPISODES),
    ] = None,
    episodes_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the list of episodes, for other systems.", rich_help_panel=EPISODES
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Beside it on the same episodes: prototype, attention, seggpt, matcher-lite; repeat it.",
            rich_help_panel=WORK,
        ),
    ] = None,
    peer_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Weights of peers; default the hub's local cache.", rich_help_panel=WORK
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.", rich_help_panel=WORK)] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Spread over a Ray cluster instead.", rich_help_panel=WORK)
    ] = False,
    *,
    model: ModelChoice,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Report, record and plot; a stopped run with the same folder goes on.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=options.OUTPUT),
    ] = False,
) -> None:
    """Measure a model on labelled pictures, beside peers and published figures of the same protocol."""
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
    results = _run(benchmark, out, workers, ray)
    if results is not None:
        record = benchmark.record(results)
        console.show_evaluation(record, as_json=json)
        if out:
            _write_report(benchmark, record, results, out)


def _run(benchmark: "Benchmark", out: Path | None, workers: int, ray: bool) -> "list[EpisodeResult] | None":
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
