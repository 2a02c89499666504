"""The paper's ablations on the compact model: train and measure every row of a table, then write the page.

    python -m tools.ablate --table 3 --root data/fewshot --out runs/ablation
    python -m tools.ablate --page docs/ablations.md --out runs/ablation

Every row has the same seed, steps, images and validation episodes; nothing is chosen on validation, the
weights after the last step (averaged) are measured. One JSON a row; a row that is there is not run again,
and a stopped one goes on. The paper's tables 3, 4 and 6 are images in our copy, so their figures
cannot be set beside ours; of table 5 the crosses are lost in the lower half, and the order of its upper
half is assumed there.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffseg_cli.choices.training import FormChoice
from diffseg_cli.config import ModulesConfig, TrainConfig
from diffseg_cli.datasets.episode import read_folder
from diffseg_cli.evaluation.metrics import RESAMPLES
from diffseg_cli.evaluation.summary import EpisodeResult, summarise
from diffseg_cli.loading import load_compact, load_edge_detector, load_modules
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.training.feature_cache import FeatureCache
from diffseg_cli.training.run_state import MODULES
from diffseg_cli.training.switches import choose_modules
from diffseg_cli.training.trainer import Trainer, new_segmenter
from diffseg_cli.training.validation import validation_episodes
from diffseg_cli.weights.checkpoint import CheckpointInfo

FULL = "full"
SHOTS = (1, 5)


@dataclass(frozen=True)
class Row:
    """One row of a table: its name, its switches, and what the paper found (1-shot, 5-shot), in percent."""

    name: str
    text: str
    switches: dict[str, Any]
    paper: tuple[float, float] | None = None


def _attentions(name: str, text: str, modes: str, paper: tuple[float, float]) -> Row:
    return Row(name, text, {"pam_attentions": modes}, paper)


TABLES = {
    3: (
        Row("neither", "neither: `M_a` of the untrained look", {"modules": "none"}),
        Row("scm", "look with SCM, answer `M_a`", {"modules": "scm"}),
        Row("pam", "PAM, no attention maps", {"modules": "pam"}),
        Row(FULL, "look with SCM, and PAM", {}),
    ),
    4: (
        Row("self", "self-attention alone", {"knowledge": "self"}),
        Row("cross", "cross-attention alone", {"knowledge": "cross"}),
        Row("resnet", "features before attention", {"knowledge": "resnet"}),
        Row("transformer", "features after attention", {"knowledge": "transformer"}),
        Row(FULL, "self- and cross-attention", {}),
    ),
    5: (
        _attentions("no_123", "none of the three", "none,none,none", (44.3, 46.5)),
        _attentions("no_1", "without attention 1", "none,attention,attention", (58.6, 60.4)),
        _attentions("no_2", "without attention 2", "attention,none,attention", (52.1, 53.7)),
        _attentions("no_3", "without attention 3", "attention,attention,none", (64.2, 66.8)),
        _attentions("conv_123", "convolution for all three", "conv,conv,conv", (59.2, 61.1)),
        _attentions("conv_1", "convolution for attention 1", "conv,attention,attention", (62.4, 63.7)),
        _attentions("conv_2", "convolution for attention 2", "attention,conv,attention", (59.9, 61.5)),
        _attentions("conv_3", "convolution for attention 3", "attention,attention,conv", (65.4, 67.2)),
        Row(FULL, "all three", {}, (69.3, 72.1)),
    ),
    6: (
        Row("scm_nowhere", "SCM at no scale", {"scm_scales": "none"}),
        Row("scm_fine", "SCM at the fine scale (stride 16)", {"scm_scales": "0"}),
        Row("scm_coarse", "SCM at the coarse scale (stride 32)", {"scm_scales": "1"}),
        Row("scm_separate", "SCM at both, a trunk each", {"scm_separate": True}),
        Row(FULL, "SCM at both, shared trunk", {}),
    ),
}


def modules_of(row: Row, image_size: int) -> ModulesConfig:
    """The switches of `diffseg train` a row stands for."""
    return choose_modules(FormChoice(**row.switches, image_size=image_size))


def build(cache: FeatureCache, name: str) -> FeatureCache:
    for done, rows in cache.build():
        if done == rows or done % 400 == 0:
            print(f"{name} {done}/{rows}", file=sys.stderr, flush=True)
    return cache


def measure(segmenter: Segmenter, validation: FeatureCache, episodes: int) -> dict[str, Any]:
    """Shots -> every episode's counts and their summary."""
    figures: dict[str, Any] = {}
    for shots in SHOTS:
        results = [
            EpisodeResult(0, None, index, name, {"model": tuple(counts.tolist())})
            for index, (name, counts) in enumerate(
                validation_episodes(segmenter, validation, shots=shots, episodes=episodes)
            )
        ]
        summary = summarise(results)["model"]
        figures[str(shots)] = {
            "mean_iou": summary["mean_iou"],
            "interval": summary["intervals"]["mean_iou"],
            "counts": [[result.class_name, *result.counts["model"]] for result in results],
        }
    return figures


def run_row(
    row: Row, settings: dict[str, Any], train: FeatureCache, held_out: FeatureCache, out: Path
) -> None:
    """Train and measure one row and write `out/NAME.json`."""
    modules = modules_of(row, settings["image_size"])
    segmenter, described = new_segmenter(train, modules, settings["seed"])
    if len(segmenter.trained.modules):
        steps = settings["steps"]
        config = TrainConfig(
            steps=steps,
            batch_size=settings["batch_size"],
            seed=settings["seed"],
            validate_every=max(1, steps // 4),
        )
        backbone = train.backbone
        info = CheckpointInfo(backbone.name, backbone.fingerprint, described, {"ablation": row.name})
        # Without validation the last state is always the best.
        for step in Trainer(segmenter, train, None, config, out / row.name, info).run():
            if step.step % max(1, steps // 4) == 0:
                print(f"{row.name} {step.step}/{steps} {step.losses}", file=sys.stderr, flush=True)
        segmenter = segmenter.with_trained(load_modules(out / row.name / MODULES, backbone))
    record = {
        "row": row.name,
        "settings": settings,
        "shots": measure(segmenter, held_out, settings["episodes"]),
    }
    partial = out / f"{row.name}.json.part"
    partial.write_text(json.dumps(record), encoding="utf-8")
    partial.replace(out / f"{row.name}.json")
    one, five = (record["shots"][str(shots)]["mean_iou"]["all"] for shots in SHOTS)
    print(f"{row.name}: {one:.3f} {five:.3f}", flush=True)


def read_record(path: Path, settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """A row's record, or None; other settings than these are refused."""
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if settings is not None and record["settings"] != settings:
        raise SystemExit(f"{path} was made with {record['settings']}; give another --out.")
    return record


def run_tables(options: argparse.Namespace) -> None:
    """Every row of the tables asked for that is not there yet."""
    torch.set_num_threads(options.threads)
    backbone = load_compact(device=torch.device("cpu"), image_size=options.image_size)
    hed, folder = load_edge_detector(backbone), options.out / "cache"
    sources = options.val_sources.split(",")
    train = FeatureCache(
        folder,
        read_folder(options.root, split="train"),
        backbone,
        hed,
        views=options.views,
        seed=options.seed,
    )
    held_out = FeatureCache(
        folder,
        read_folder(options.root, split="val", sources=sources),
        backbone,
        hed,
        views=1,
        seed=options.seed,
    )
    settings = {
        name: getattr(options, name)
        for name in ("steps", "batch_size", "seed", "image_size", "episodes", "views", "val_sources")
    }
    settings |= {"backbone": backbone.fingerprint, "train_config": asdict(replace(TrainConfig(), steps=0))}
    settings = json.loads(json.dumps(settings))  # as a record gives them back
    rows = {row.name: row for table in options.table for row in TABLES[table]}
    build(train, "training images"), build(held_out, "validation images")
    for row in rows.values():
        if read_record(options.out / f"{row.name}.json", settings) is None:
            run_row(row, settings, train, held_out, options.out)


def difference(record: dict[str, Any], full: dict[str, Any], shots: int) -> tuple[float, float, float]:
    """Mean IoU of a row less that of the whole method, and its 95 % interval, over the same episodes.

    Both are resampled with the same draws, so what makes an episode hard cancels.
    """
    by_class: dict[str, list[list[int]]] = {}
    for (name, *mine), (other, *theirs) in zip(
        record["shots"][str(shots)]["counts"], full["shots"][str(shots)]["counts"], strict=True
    ):
        if name != other:
            raise ValueError("the rows were measured on other episodes")
        by_class.setdefault(name, []).append([*mine[:2], *theirs[:2]])
    generator = np.random.Generator(np.random.PCG64([0, RESAMPLES]))
    exact, draws = [], []
    for counts in (np.array(rows, dtype=np.float64) for rows in by_class.values()):
        times = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=RESAMPLES)
        for sums, kept in ((counts.sum(0)[None], exact), (times @ counts, draws)):
            kept.append(sums[:, 0] / np.maximum(sums[:, 1], 1) - sums[:, 2] / np.maximum(sums[:, 3], 1))
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return float(np.mean(exact)), float(low), float(high)


def whole_record(out: Path) -> dict[str, Any]:
    """The record of the whole method."""
    record = read_record(out / f"{FULL}.json", None)
    if record is None:
        raise SystemExit(f"{out}/{FULL}.json is missing: the other rows are compared with it.")
    return record


def table_text(table: int, out: Path) -> list[str]:
    """A table in Markdown; rows that have not been run are left out."""
    full = whole_record(out)
    lines = [
        "| row | 1 shot | against the whole | 5 shots | against the whole | paper, 1 / 5 shots |",
        "|---|---|---|---|---|---|",
    ]
    for row in TABLES[table]:
        record = read_record(out / f"{row.name}.json", full["settings"])
        if record is None:
            continue
        cells = [row.text]
        for shots in SHOTS:
            figures = record["shots"][str(shots)]
            low, high = figures["interval"]
            cells.append(f"{figures['mean_iou']['all']:.3f} ({low:.3f}-{high:.3f})")
            change = difference(record, full, shots)
            cells.append("" if row.name == FULL else "{:+.3f} ({:+.3f} to {:+.3f})".format(*change))
        cells.append(f"{row.paper[0]} / {row.paper[1]}" if row.paper else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


TITLES = {
    3: "Table 3: modules",
    4: "Table 4: what the score map is made of",
    5: "Table 5: PAM's three attentions",
    6: "Table 6: where SCM acts",
}
INTRODUCTION = """\
# Ablations

The paper's tables 3 to 6 on the compact model. Mean IoU over held-out classes with 95 % intervals by
bootstrap; the differences are paired, both rows on the same episodes with the same draws. Every row: {steps}
steps of {batch_size} episodes at {image_size} px, seed {seed}, and {episodes} episodes per class of the
sources {val_sources} counted at half the model's size. Nothing is chosen on these classes: the averaged
weights after the last step are measured. The paper's figures are of PASCAL-5i with Kandinsky and say only
which way a row moved. Those of tables 3, 4 and 6 are images in our copy and cannot be quoted; in
the lower half of table 5 the crosses are lost, and the order of the upper half is assumed."""
CLAIMS = "\n## What holds here\n"


def write_page(page: Path, out: Path) -> None:
    """All tables as one page; what was written by hand below them is kept."""
    kept = page.read_text(encoding="utf-8").partition(CLAIMS)[2] if page.is_file() else ""
    full = whole_record(out)
    text = [INTRODUCTION.format(**full["settings"])]
    for table, title in TITLES.items():
        command = f"    python -m tools.ablate --table {table} --root data/fewshot --out runs/ablation"
        command += "".join(
            f" --{name.replace('_', '-')} {full['settings'][name]}"
            for name in ("steps", "image_size", "episodes")
        )
        text += ["", f"## {title}", "", *table_text(table, out), "", command]
    page.write_text("\n".join(text) + f"\n{CLAIMS}{kept or chr(10)}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table", type=int, action="append", choices=sorted(TABLES), help="repeat for several"
    )
    parser.add_argument("--root", type=Path, help="folder of classes with index.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder of records and cache")
    parser.add_argument("--page", type=Path, help="write the tables there instead of running")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--episodes", type=int, default=20, help="a class and number of shots")
    parser.add_argument("--views", type=int, default=1, help="cached views per training image")
    parser.add_argument("--val-sources", default="voc,coco_mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.page:
        write_page(options.page, options.out)
    elif options.table and options.root:
        run_tables(options)
    else:
        parser.error("give --table and --root, or --page")


if __name__ == "__main__":
    main()
