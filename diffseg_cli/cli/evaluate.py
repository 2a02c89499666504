"""diffseg evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from diffseg_cli.cli import console, options

EXAMPLES = """Examples:

  diffseg evaluate --root my_classes/ --shots 1

  diffseg evaluate --root data/fewshot --split val --shots 5 --peer prototype --json"""


def evaluate(
    root: Annotated[
        Path, typer.Option(help="Folder with one folder a class: NAME.jpg and its mask NAME.png.")
    ],
    split: Annotated[str | None, typer.Option(help="Only the rows of index.csv with this split.")] = None,
    sources: Annotated[
        str | None, typer.Option(help="Only these sources of index.csv, comma separated.")
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Supports an episode.")] = 1,
    episodes_per_class: Annotated[int, typer.Option(min=1, help="Episodes a class.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the list of episodes.")] = 0,
    peer: Annotated[
        str | None, typer.Option(help="prototype: run the training-free line on the same episodes.")
    ] = None,
    model: options.Model = "compact",
    checkpoint: options.Checkpoint = None,
    head: options.Head = None,
    fusion: options.Fusion = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Measure a model on labelled pictures: mean IoU over classes, FB-IoU, per class."""
    from diffseg_cli.episode import read_folder
    from diffseg_cli.evaluation import Evaluation, evaluation_record, peer_methods
    from diffseg_cli.segmenter import load_segmenter

    methods = peer_methods(peer)
    dataset = read_folder(root, split=split, sources=sources.split(",") if sources else None)
    segmenter = load_segmenter(model, checkpoint, device, dtype, head=head, fusion=fusion)
    run = Evaluation(segmenter, dataset, shots=shots, seed=seed, methods=methods)
    total = episodes_per_class * len(run.dataset.classes)
    for _ in console.track(run.run(total), total, "episodes"):
        pass
    console.show_evaluation(evaluation_record(run), as_json=json)
