"""diffseg concept: save a support set once as one file, look into it, find out which supports help."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffseg_cli.choices import (
    SUPPORT,
    AdaptChoice,
    BackboneChoice,
    Checkpoint,
    Mask,
    MaskChoice,
    ModelChoice,
    Option,
    Support,
)
from diffseg_cli.cli import console, inputs
from diffseg_cli.cli.adapting import figures, follow_with_bar
from diffseg_cli.cli.options import Verb, Verbs, expand
from diffseg_cli.errors import UsageError

if TYPE_CHECKING:
    from diffseg_cli.supports.adapted_modules import SavedModules

concept_app = typer.Typer(
    no_args_is_help=True,
    cls=Verbs,
    help="Save supports as one file (.dsc), show it, check which supports help.",
    epilog="Examples:\n\n  diffseg concept make dog.dsc --support a.jpg --mask a.png\n\n"
    "  diffseg concept show dog.dsc --sheet supports.png",
)

MAKE_EXAMPLES = """Examples:

  diffseg concept make dog.dsc --support a.jpg --mask a.png

  diffseg concept make weld.dsc -s a.jpg -m a.png -s b.jpg -m b.png --adapt"""

SHOW_EXAMPLES = """Examples:

  diffseg concept show dog.dsc

  diffseg concept show dog.dsc sofa.dsc --sheet supports.png --json"""

CHECK_EXAMPLES = """Examples:

  diffseg concept check dog.dsc

  diffseg concept check dog.dsc --json | jq .supports"""

Concepts = Annotated[list[Path], typer.Argument(metavar="FILE", help="Concepts to show.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per concept.")]


@concept_app.command(cls=Verb, epilog=MAKE_EXAMPLES)
@expand
def make(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Concept to write, for example dog.dsc.")],
    *,
    support: Support,
    mask: Mask,
    name: Annotated[
        str | None, Option("Name of the concept. Default: that of FILE.", SUPPORT, metavar="NAME")
    ] = None,
    masks: MaskChoice,
    adapt: AdaptChoice,
    backbone: BackboneChoice,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Encode supports and save them as one file, for --concept.

    The file also holds the images at 384 pixels, their names and hashes. It
    fits only the model it was made with. With --adapt it also holds the
    adapted modules, so that using it costs no more than any other concept.
    """
    if checkpoint and not adapt.adapt:
        raise UsageError(
            "--checkpoint names modules that only --adapt reads.", "Leave it out, or add --adapt."
        )
    from diffseg_cli.supports.concept import write_concept

    inputs.check_files(support[0], [file])
    if file.resolve() in {path.resolve() for path in [*support, *mask]}:
        raise UsageError(f"{file} would overwrite a support.", "Choose another name for the concept.")
    if file.resolve() in {path.resolve() for path in adapt.negative_files}:
        raise UsageError(f"{file} would overwrite an image.", "Choose another name for the concept.")
    supports = inputs.read_support_set(file.stem if name is None else name, support, mask, masks, adapt)
    with console.working("Encoding") as stop:
        from diffseg_cli.assembly import load_chosen
        from diffseg_cli.finding import adapt_to

        # The backbone alone encodes supports; plain modules come in when the concept is used.
        choice = ModelChoice(**vars(backbone), checkpoint=checkpoint)
        segmenter = load_chosen(choice if adapt.adapt else replace(choice, head="attention"))
        adapted = adapt_to(segmenter, supports, follow_with_bar(stop))
        saved = write_concept(file, segmenter, supports, adapted)
    if as_json:
        console.result_json(saved.record)
    else:
        console.result(str(file))


@concept_app.command(cls=Verb, epilog=SHOW_EXAMPLES)
@expand
def show(
    files: Concepts,
    sheet: Annotated[Path | None, Option("Draw the supports on a sheet, a PNG.", metavar="FILE")] = None,
    as_json: Json = False,
) -> None:
    """Show what concepts hold: name, supports, and the model they fit."""
    from diffseg_cli.supports.concept import open_concept

    if sheet:
        _check_sheet(sheet, files)
    for path in files:
        saved = open_concept(path)
        if as_json:
            console.result_json({"file": str(path), "bytes": path.stat().st_size, **saved.record})
            continue
        console.result(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
        console.result(f"  name      {saved.name}")
        console.result(f"  model     {saved.backbone} ({saved.fingerprint}), diffseg {saved.version}")
        if saved.adapted:
            console.result(f"  adapted   {_how(saved.adapted)}")
        for source in saved.sources:
            console.result(f"  support   {source.image} {source.image_sha256[:12]}")
            console.result(f"  mask      {source.mask} {source.mask_sha256[:12]}")
    if sheet:
        _draw(files, sheet)
        if not as_json:
            console.result(str(sheet))


def _how(adapted: "SavedModules") -> str:
    """What came of the adaptation a file holds."""
    return f"IoU {figures(adapted)}" if adapted.reach else "it did not help; the modules in use answer"


def _check_sheet(sheet: Path, files: list[Path]) -> None:
    from diffseg_cli.files import check_folder

    if sheet.resolve() in {path.resolve() for path in files}:
        raise UsageError(f"{sheet} would be overwritten.", "Choose another name for the sheet.")
    check_folder(sheet.parent)


def _draw(files: list[Path], sheet: Path) -> None:
    """Draw the supports of concepts, a row each."""
    from diffseg_cli.results.outputs import support_sheet
    from diffseg_cli.results.render import write_image
    from diffseg_cli.supports.concept import open_concept

    named = [
        (saved.name, [(*pair, s.image) for pair, s in zip(saved.thumbnails(), saved.sources, strict=True)])
        for saved in map(open_concept, files)
    ]
    write_image(sheet, support_sheet(named))


@concept_app.command(cls=Verb, epilog=CHECK_EXAMPLES)
@expand
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A concept of three supports or more.")],
    *,
    model: ModelChoice,
    as_json: Json = False,
) -> None:
    """Find out which supports help and which hurt, by leaving each out.

    "found" is the IoU with which the others find a support, "alone" the soft
    IoU with which it alone finds the others, "gain" what it adds to them. A
    support hurts if the others find it badly, it finds them badly and it adds
    nothing: it shows something else, or its mask is wrong.
    """
    from diffseg_cli.supports.concept import open_concept

    saved = open_concept(file)
    if len(saved.sources) < 3:
        raise UsageError(
            f"{file} holds {len(saved.sources)} supports; leaving one out takes three or more.",
            "Make it again with more supports.",
        )
    with console.working("Leaving out each support"):
        from diffseg_cli.assembly import load_chosen
        from diffseg_cli.supports.support_check import check_supports

        segmenter = load_chosen(model)
        concept = saved.concept(segmenter)
        checked = check_supports(concept.answering(segmenter), concept.support, saved.thumbnails())
        rows = [asdict(each) for each in checked]
    rows = [{"support": s.image, **row} for s, row in zip(saved.sources, rows, strict=True)]
    if as_json:
        console.result_json({"file": str(file), "name": saved.name, "supports": rows})
        return
    _print_checks(rows)


def _print_checks(rows: list[dict[str, Any]]) -> None:
    """A table of supports, and what to do."""
    width = max(len("support"), *(len(row["support"]) for row in rows))
    console.result(f"{'support':<{width}}  found  alone    gain  verdict")
    for row in rows:
        figures = f"{row['found']:5.2f}  {row['alone']:5.2f}  {row['gain']:+6.3f}"
        line = f"{row['support']:<{width}}  {figures}  {row['verdict']}"
        console.result(f"{line} ({'; '.join(row['reasons'])})" if row["reasons"] else line)
    hurting = [row["support"] for row in rows if row["verdict"] == "hurts"]
    console.result(f"Try it without {' and '.join(hurting)}." if hurting else "No support hurts the others.")
