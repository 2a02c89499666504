"""diffseg export."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from diffseg_cli.choices import Option
from diffseg_cli.cli import console

EXAMPLES = """Examples:

  diffseg export labels/ --format coco

  diffseg export labels/ --format yolo --all --instances --out dataset/"""


def export(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="The --out folder of `diffseg serve`.")],
    form: Annotated[
        Literal["coco", "yolo", "labelme", "voc", "mask"],
        Option(
            "What to write: coco, yolo, labelme, voc or mask.", flags=("--format", "-f"), metavar="FORMAT"
        ),
    ],
    out: Annotated[
        Path | None,
        Option("Folder for the files. Default: LABELS/export.", flags=("--out", "-o"), metavar="DIR"),
    ] = None,
    everything: Annotated[
        bool, Option("Proposals as well, not only what a person has reviewed.", flags=("--all",))
    ] = False,
    instances: Annotated[
        bool | None,
        Option(
            "Objects of a class apart, cut where two touch. Default: as `diffseg serve` was told.",
            flags=("--instances/--no-instances",),
        ),
    ] = None,
) -> None:
    """Write the labels of a project for other tools.

    Takes images that were accepted, corrected or marked as empty; with --all
    proposals as well. Prints the folder.
    """
    from diffseg_cli.files import write_whole
    from diffseg_cli.labelling.export import exported
    from diffseg_cli.labelling.project import open_project

    project = open_project(labels)
    place = out or labels / "export"
    count = 0
    for files in exported(project, form, place, everything=everything, instances=instances):
        for name, content in files.items():
            write_whole(place / name, content)
        count += len(files)
    console.say(f"{count} files.")
    console.result(str(place))
