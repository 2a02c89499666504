"""diffseg evaluate."""

from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Annotated, Any, Literal

from diffseg_cli.choices import OUTPUT, Option
from diffseg_cli.choices.evaluation import EPISODES, WORK, EvaluationPlan
from diffseg_cli.cli import console

if TYPE_CHECKING:
    from diffseg_cli.evaluation.benchmark import Benchmark
    from diffseg_cli.evaluation.summary import EpisodeResult

EXAMPLES = """Examples:

  diffseg evaluate --root my_classes/ --shots 1 --peer prototype --out report/

  diffseg evaluate --dataset pascal-5i --root VOCdevkit --workers 4 --out voc/"""

SHOWN = 4  # best, median and worst episodes each in the report


def evaluate(
    *,
    plan: EvaluationPlan,
    episodes_out: Annotated[
        Path | None, Option("Write the list of episodes, for other programs.", EPISODES, metavar="FILE")
    ] = None,
    workers: Annotated[int, Option("Processes on this machine.", WORK, metavar="N", least=1)] = 1,
    engine: Annotated[Literal["local", "ray"], Option("Work here, or on a Ray cluster.", WORK)] = "local",
    out: Annotated[
        Path | None,
        Option(
            "Folder for report, record and plot; the same folder resumes a stopped run.",
            OUTPUT,
            flags=("--out", "-o"),
            metavar="DIR",
        ),
    ] = None,
    json: Annotated[bool, Option("Print one JSON object.", OUTPUT)] = False,
) -> None:
    """Measure a model on labelled images, beside other methods and published figures.

    Episodes follow the data set's protocol, so that the figures compare with
    published ones.
    """
    with console.working("Loading the model and the data set"):
        from diffseg_cli.evaluation.benchmark import Benchmark
        from diffseg_cli.evaluation.spread import share_device

        benchmark = Benchmark(share_device(plan))
    if episodes_out:
        from diffseg_cli.evaluation.episode_list import write_list

        write_list(episodes_out, benchmark.about(), benchmark.lines)
    results = _run(benchmark, out, workers, ray=engine == "ray")
    if results is not None:
        record = benchmark.record(results)
        show_figures(record, as_json=json)
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
        illustrations = {
            name: [(result, benchmark.illustrate(result)) for result in chosen]
            for name, chosen in telling.items()
        }
        write_report(out, record, illustrations)
    console.say(f"Report: {out / REPORT}")


# --- on the terminal ---------------------------------------------------------------------------------


def show_figures(record: dict[str, Any], *, as_json: bool) -> None:
    """Figures of an evaluation: one JSON object, or a block a method."""
    if as_json:
        console.result_json(record)
        return
    console.result(
        f"{record['model']} ({record['head']}, {record['fusion']}), {record['shots']}-shot, "
        f"{record['episodes']} episodes of {record['classes']} classes, seed {record['seed']}"
    )
    sweep = record.get("sweep") or {"rows": []}
    swept = {row["method"] for row in sweep["rows"]} - {"model"}
    for method, figures in record["methods"].items():
        if method in swept:
            continue
        cut = record["thresholds"].get(method)
        console.result(f"\n{method}" + ("" if cut is None else f", threshold {cut:g}"))
        sure = figures.get("intervals") or {}
        runs = len(figures.get("mean_iou_runs", []))
        several = f"  mean of {runs} runs, sd {stdev(figures['mean_iou_runs']):.3f}" if runs > 1 else ""
        rows = [(f"mean IoU {group}", f"{value:.3f}") for group, value in figures["mean_iou"].items()]
        rows[0] = (rows[0][0], rows[0][1] + _interval(sure.get("mean_iou")) + several)
        rows += [(f"mean IoU fold {fold}", f"{v:.3f}") for fold, v in figures.get("per_fold", {}).items()]
        rows += [
            (f"boundary IoU {group}", f"{v:.3f}" + _interval(sure.get("boundary_iou") if i == 0 else None))
            for i, (group, v) in enumerate(figures.get("boundary_iou", {}).items())
        ]
        rows += [("FB-IoU", f"{figures['fb_iou']:.3f}" + _interval(sure.get("fb_iou")))]
        rows += _costs(record.get("costs", {}).get(method, {}))
        rows += [
            (name, f"{value:.3f}" + _interval(sure.get("per_class", {}).get(name)))
            for name, value in figures["per_class"].items()
        ]
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            console.result(f"  {name:<{width}}  {text}")
    if record["adapted"]:
        _show_adaptations(record["adapted"])
    if swept:
        _show_sweep(sweep)
    if record["shares"]:
        _show_shares(record["shares"])
    _show_published(record)


def _show_shares(rows: list[dict[str, Any]]) -> None:
    """Mean IoU, looks and time by the share of the scene that the object covers."""
    console.result(f"\n{'object':<14}  {'scenes':>6}  {'method':<12}  {'IoU':>5}  {'looks':>5}  seconds")
    for row in rows:
        part = f"{row['from']:.1%} to {row['below']:.1%}"
        for method, figures in row["methods"].items():
            looks = "" if figures["looks"] is None else f"{figures['looks']:.1f}"
            console.result(
                f"{part:<14}  {row['episodes']:>6}  {method:<12}  {figures['iou']:.3f}  {looks:>5}  "
                f"{figures['seconds']:7.2f}"
            )


def _show_adaptations(adapted: dict[str, Any]) -> None:
    """What adaptation did: one line, a table of the classes, and what became of the presence score."""
    console.result(
        f"\nadapted: modules moved in {adapted['share_moved']:.0%} of the episodes, mean reach "
        f"{adapted['mean_reach']:.2f}, {adapted['seconds_per_set']:.0f} s per support set; "
        f"{adapted['share_lowered']:.0%} of the classes fell by more than 0.02"
    )
    width = max(map(len, adapted["classes"]))
    console.result(f"  {'':<{width}}  model  adapted  change  reach  seconds")
    for name, row in sorted(adapted["classes"].items(), key=lambda item: -item[1]["difference"]):
        console.result(
            f"  {name:<{width}}  {row['model']:.3f}  {row['adapted']:7.3f}  {row['difference']:+.3f}  "
            f"{row['reach']:5.2f}  {row['seconds']:7.1f}"
        )
    for method, figures in adapted["presence"].items():
        console.result(
            f"  presence, {method}: ROC AUC {figures['auc']:.3f}, mean {figures['present']:.2f} with the "
            f"class, {figures['absent']:.2f} without"
        )


def _show_sweep(sweep: dict[str, Any]) -> None:
    """Settings, best first, with what they gained on the model as it was asked for."""
    console.result("\nSettings, best first: mean IoU, gain over the model as given (95 % of the draws)")
    for row in sweep["rows"]:
        ends = "" if row["interval"] is None else "({:+.3f} to {:+.3f})".format(*row["interval"])
        if row["method"] == "model":
            console.result(f"  {row['mean_iou']:.3f}  {'':26}as given")
        else:
            console.result(f"  {row['mean_iou']:.3f}  {row['gain']:+.3f}  {ends:<18}  {row['method']}")
    console.result(
        "Use: as given; no setting is better beyond chance"
        if sweep["use"] == "model"
        else f"Use: {sweep['use']}"
    )


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"  (95 %: {ends[0]:.3f} to {ends[1]:.3f})"


def _costs(costs: dict[str, float | None]) -> list[tuple[str, str]]:
    """Time and memory, where they were measured."""
    forms = (
        ("seconds_per_episode", "time per episode", "{:.2f} s"),
        ("weights_mib", "weights", "{:.0f} MiB"),
        ("device_mib", "GPU memory", "{:.0f} MiB"),
    )
    return [(label, form.format(costs[name])) for name, label, form in forms if costs.get(name) is not None]


def _show_published(record: dict[str, Any]) -> None:
    """Published figures of the same protocol with ours among them, in percent; each kind by itself."""
    for kind in sorted({row["kind"] for row in record.get("published", [])}):
        rows = [
            (row["mean_iou"], f"{row['method']}, {row['backbone']}", row["source"])
            for row in record["published"]
            if row["kind"] == kind
        ]
        rows += [
            (100 * figures["mean_iou"]["all"], f"> {method}, this run", "")
            for method, figures in record["methods"].items()
            if record["kinds"][method] == kind
        ]
        width = max(len(name) for _, name, _ in rows)
        console.result(f"\nPublished, {kind} (mean IoU in percent; {record['protocol']})")
        for value, name, source in sorted(rows):
            console.result(f"  {value:5.1f}  {name:<{width}}  {source}".rstrip())
    for text in record.get("notes", []):
        console.note(text)
