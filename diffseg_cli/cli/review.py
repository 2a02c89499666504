"""diffseg review."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diffseg_cli.choices import Option
from diffseg_cli.cli import console

EXAMPLES = """Examples:

  diffseg review labels/

  diffseg review labels/ --json"""

MOST_DOUBTFUL = 5  # images the table names


def review(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="The --out folder of `diffseg serve`.")],
    json: Annotated[bool, Option("One JSON object per image.")] = False,
) -> None:
    """Say how far the labelling of a folder is.

    Counts the images in each state and names the proposals the model doubts most.
    """
    from diffseg_cli.labelling.doubt import by_doubt
    from diffseg_cli.labelling.project import open_project
    from diffseg_cli.labelling.review_log import State

    project = open_project(labels)
    reviews = by_doubt(project.reviews())
    if json:
        for each in reviews:
            console.result_json(asdict(each))
        return
    counts = Counter(each.state for each in reviews)
    console.result(f"{len(reviews)} images in {project.images}, classes: {', '.join(project.classes)}")
    width = max(len(state.value) for state in State)
    for state in State:
        console.result(f"  {state.value:<{width}}  {counts[state]:>6}")
    doubtful = [each for each in reviews if each.state is State.PROPOSED and each.doubt is not None]
    if doubtful:
        console.result("Look at these first:")
    for each in doubtful[:MOST_DOUBTFUL]:
        console.result(f"  {each.image}  doubt {each.doubt:.2f}")
