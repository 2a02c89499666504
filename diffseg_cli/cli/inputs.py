"""What verbs check and read before anything slow starts."""

import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffseg_cli.choices import AdaptChoice, MaskChoice, SupportChoice
from diffseg_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffseg_cli.supports.concept import SavedConcept, SupportSet

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")
STREAM = Path("-")  # stdin as a query, stdout as the place of results
LONGEST_NAME = 255  # bytes of a file's name on nearly all file systems
MOST_PIPED = 512_000_000  # bytes; an uncompressed image of 100 megapixels has 300


@dataclass(frozen=True)
class QueryOutputs:
    """One image and the files its results go to.

    Attributes:
        query: the image.
        key: what files of the run call it.
        outputs: result -> its file.
    """

    query: Path
    key: str
    outputs: dict[str, Path]


def plan_outputs(
    queries: Sequence[Path],
    out: Path,
    patterns: Mapping[str, str],
    inputs: Sequence[Path],
    run_files: Collection[str] = (),
) -> list[QueryOutputs]:
    """Name every result, and refuse a run that would lose one or an input; then check that it can be done.

    Args:
        queries: images to work on; "-" is one on stdin, whose results are called "stdin".
        out: folder of the results; for "-" see `check_streams`.
        patterns: result -> the name of its file, where "*" stands for the query's stem.
        inputs: other files of the run.
        run_files: names of results of the whole run.

    Raises:
        UsageError: two results, or a result and an input, have the same name.
        InputError: a query cannot be opened, or the folder cannot be written.
    """
    if out == STREAM and patterns:
        raise UsageError("--out - is for the mask of `diffseg segment`.", "Give a folder here.")
    from diffseg_cli.files import Claims, check_folder
    from diffseg_cli.reading.image_io import check_image

    claims = Claims(out, [*queries, *inputs])
    claims.claim(run_files, "the run itself")
    plans: list[QueryOutputs] = []
    for query, stem in zip(queries, result_stems(queries), strict=True):
        if any(query == plan.query for plan in plans):
            raise UsageError(f"{query} is given twice.", "Give each query once.")
        names = {what: pattern.replace("*", stem, 1) for what, pattern in patterns.items()}
        claims.claim(names.values(), str(query))
        _check_lengths(query, names.values())
        outputs = {what: out / name for what, name in names.items()}
        plans.append(QueryOutputs(query, f"{stem}{query.suffix}", outputs))
    for query in queries:
        if query != STREAM:
            check_image(query)
    if patterns or run_files:
        check_folder(out)
    return plans


def _check_lengths(query: Path, names: Iterable[str]) -> None:
    """Refuse a query whose results would have names no disk takes, before anything slow starts."""
    for name in names:
        length = len(os.fsencode(name.rpartition("/")[2]))
        if length > LONGEST_NAME:
            raise InputError(
                f"The name of {query} is too long: a result would have {length} bytes of {LONGEST_NAME}.",
                "Rename the image.",
            )


def result_stems(queries: Sequence[Path]) -> list[str]:
    """What the names of each query's results begin with: its stem.

    Where queries of several folders share a stem, folders below the common one come before all of them.
    """
    from diffseg_cli.files import folded

    stems = ["stdin" if query == STREAM else query.stem for query in queries]
    folders = [Path.cwd() if query == STREAM else query.absolute().parent for query in queries]
    if len({folded(stem) for stem in stems}) == len(stems):
        return stems
    try:
        root = Path(os.path.commonpath(folders))
    except ValueError:  # several drives
        return stems
    return [(folder.relative_to(root) / stem).as_posix() for folder, stem in zip(folders, stems, strict=True)]


def check_queries(queries: Sequence[Path]) -> None:
    """Refuse what is no single image, and say which verb takes it.

    Raises:
        UsageError: nothing, a folder, or a URL.
    """
    if not queries:
        raise UsageError("There is no image to search.", "Name one or several, for example scene.jpg.")
    for query in queries:
        url = URL.match(str(query))
        if url:  # a path has lost one of its slashes
            named = f"{url[1]}://{url[2]}"
            raise UsageError(f"{named} is a URL.", f"Download it, or use `diffseg batch --queries {named}`.")
        if query != STREAM and query.is_dir():
            raise UsageError(
                f"{query} is a folder.", f"For all images in it use `diffseg batch --queries {query}`."
            )


def check_streams(queries: Sequence[Path], out: Path, *, as_json: bool) -> None:
    """Check that what is to come from stdin and go to stdout can.

    Raises:
        UsageError: a terminal is at the other end, or two things would share a pipe.
    """
    if STREAM in queries and sys.stdin.isatty():
        raise UsageError(
            "--query - reads an image from a pipe.", "For example: cat a.jpg | diffseg segment ..."
        )
    if out != STREAM:
        return
    if len(queries) > 1 or as_json:
        raise UsageError(
            "--out - writes one mask to stdout and nothing else.",
            "Give a folder for several images, or for --json.",
        )
    if sys.stdout.isatty():
        raise UsageError("--out - would write a PNG to the terminal.", "Add for example: > mask.png")


def read_query_image(query: Path) -> "NDArray[np.uint8]":
    """Read an image from a file, or from stdin for "-".

    Raises:
        InputError: it cannot be used.
    """
    from diffseg_cli.reading.image_io import read_image
    from diffseg_cli.reading.input_files import InputFile

    if query != STREAM:
        return read_image(query)
    content = sys.stdin.buffer.read(MOST_PIPED + 1)
    if len(content) > MOST_PIPED:
        raise InputError(f"stdin holds more than {MOST_PIPED // 10**6} MB.", "Scale the image down first.")
    return read_image(InputFile("stdin", content))


def check_files(image: Path, outputs: Sequence[Path]) -> None:
    """Check that an image can be opened, and that results can be written and do not replace it.

    Raises:
        UsageError: a result would replace the image.
        InputError: the image cannot be opened, or a folder not be written.
    """
    from diffseg_cli.files import check_folder
    from diffseg_cli.reading.image_io import check_image

    check_image(image)
    for output in outputs:
        if output.resolve() == image.resolve():
            raise UsageError(f"{image} would be overwritten.", "Choose another --out.")
        if output.is_dir():
            raise InputError(f"{output} is a folder.", "Name a file.")
        check_folder(output.parent)


def read_concepts(
    choice: SupportChoice, masks: MaskChoice, adapt: AdaptChoice
) -> "list[SupportSet | SavedConcept]":
    """What the options of a verb ask for: supports with their masks, or saved concepts, of which only the
    headers are read.

    Raises:
        UsageError: nothing, both kinds, a name that is none or twice the same, a file twice, or an adaptation
            to what is saved already.
        InputError: a support, mask or negative cannot be used.
        WeightsError: a concept cannot be read.
    """
    given_by_images = choice.support or choice.mask
    if not (given_by_images or choice.concept):
        raise UsageError("Nothing to look for is given.", "Give --support with --mask, or --concept.")
    if choice.concept and given_by_images:
        raise UsageError(
            "--concept stands for supports and their masks; both are given.",
            "Put the supports into a concept of their own with `diffseg concept make`.",
        )
    from diffseg_cli.results.formats import UNNAMED

    if not choice.concept:
        name = UNNAMED if choice.name is None else choice.name
        return [read_support_set(name, choice.support, choice.mask, masks, adapt)]
    if choice.name is not None:
        raise UsageError("A concept has its own name.", "Leave --name out.")
    if masks != MaskChoice():
        raise UsageError("A concept holds its masks already.", "Leave the options that read masks out.")
    _check_adapt(adapt)
    if adapt.adapt:
        raise UsageError(
            "A concept is adapted when it is made.",
            "Make it with `diffseg concept make --adapt`, and leave --adapt out here.",
        )
    return [*open_concepts(choice.concept)]


def open_concepts(files: Sequence[Path]) -> "list[SavedConcept]":
    """Saved concepts that can be looked for together.

    Raises:
        UsageError: a name or a file twice, or too many.
        WeightsError: one cannot be read.
    """
    from diffseg_cli.files import folded
    from diffseg_cli.results.palette import MOST_CONCEPTS
    from diffseg_cli.supports.concept import SavedConcept, open_concept

    concepts = [open_concept(file) for file in files]
    owner: dict[str, SavedConcept] = {}
    for concept in concepts:
        other = owner.setdefault(folded(concept.name), concept)
        if other is not concept:
            raise UsageError(
                f"{other.file} and {concept.file} are both called {concept.name}.",
                "Give each once, or make one again with another --name.",
            )
    if len(concepts) > MOST_CONCEPTS:
        raise UsageError(f"One label map holds {MOST_CONCEPTS} concepts at most.", "Run them apart.")
    return concepts


def read_support_set(
    name: str, supports: Sequence[Path], masks: Sequence[Path], choice: MaskChoice, adapt: AdaptChoice
) -> "SupportSet":
    """Supports with their masks under a name, paired in order.

    Raises:
        UsageError: not one mask a support, two choices that exclude each other, or as `check_name`.
        InputError: an image cannot be used, or a mask has another size than its image.
    """
    from diffseg_cli.reading.image_io import read_image, read_pairs
    from diffseg_cli.supports.concept import SupportSet, check_name, source_of

    _check_adapt(adapt)
    check_name(name)
    if len(supports) != len(masks):
        raise UsageError(
            f"--support is given {_times(len(supports))} and --mask {_times(len(masks))}.",
            "Give one --mask for each --support, in the same order.",
        )
    pairs = read_pairs(supports, masks, choice)
    sources = [source_of(*each) for each in zip(supports, masks, strict=True)]
    marked, whole = adapt.negatives[: len(adapt.negative_masks)], adapt.negatives[len(adapt.negative_masks) :]
    shown = {path.resolve() for path in supports}
    for each in whole:
        if each.resolve() in shown:
            raise UsageError(
                f"{each} is a support and an image without the object at once.", "Drop one of them."
            )
    negatives = [
        *read_pairs(marked, adapt.negative_masks, MaskChoice(fit=choice.fit)),
        *((read_image(each), None) for each in whole),
    ]
    files = [*supports, *masks, *adapt.negative_files]
    return SupportSet(name, pairs, sources, files=files, adapt=adapt.adapt, negatives=negatives)


def _check_adapt(adapt: AdaptChoice) -> None:
    if adapt.negatives and not adapt.adapt:
        raise UsageError(
            "--not names images that only --adapt learns from.", "Add --adapt, or leave --not out."
        )
    images, masks = len(adapt.negatives), len(adapt.negative_masks)
    if masks > images:
        raise UsageError(
            f"--not is given {_times(images)} and --not-mask {_times(masks)}.",
            "Give one --not for each --not-mask, in the same order.",
        )


def read_query(
    query: Path, points: Sequence[str], region: Path | None
) -> "tuple[NDArray[np.uint8], NDArray[np.bool_] | None, list[tuple[int, int]]]":
    """Read an image to look at, and the places or area whose affinity is asked for, if any are chosen.

    Returns:
        The image, the area, and the points (x, y).

    Raises:
        UsageError: both points and a region, or a point that is none or lies outside.
        InputError: the image or the region's mask cannot be used, or their sizes differ.
    """
    if points and region is not None:
        raise UsageError("--point and --region both choose a region.", "Give one of them.")
    import numpy as np

    from diffseg_cli.reading.image_io import read_pair

    if region is not None:
        return *read_pair(query, region), []
    image = read_query_image(query)
    places = list(dict.fromkeys(parse_point(point, "--point") for point in points))
    masks = point_masks(places, image)
    return image, np.logical_or.reduce(masks) if masks else None, places


def point_masks(points: Sequence[tuple[int, int]], image: "NDArray[np.uint8]") -> "list[NDArray[np.bool_]]":
    """The mask of each point (x, y) in an image (H W 3). Raises UsageError: one lies outside."""
    from diffseg_cli.reading.mask_checks import point_mask

    return [point_mask(x, y, (image.shape[0], image.shape[1])) for x, y in points]


def parse_point(text: str, option: str) -> tuple[int, int]:
    """ "X,Y" in whole pixels from the left and from the top.

    Raises:
        UsageError: it is none.
    """
    x, _, y = (part.strip() for part in text.partition(","))
    if not (_is_short_number(x) and _is_short_number(y)):
        raise UsageError(
            f"'{text}' is not a point.", f"Write it as X,Y in pixels, for example {option} 320,200."
        )
    return int(x), int(y)


def parse_numbers(text: str, option: str, form: str, least: int, most: int) -> list[float]:
    """Pairs of numbers between commas, such as a box or an outline, `least` to `most` of them.

    Raises:
        UsageError: it is something else than `option` takes, which is written as `form`.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if (
        len(numbers) % 2
        or not least <= len(numbers) <= most
        or not all(abs(number) < 1e6 for number in numbers)
    ):
        raise UsageError(f"'{text}' does not fit {option}.", f"Write it as {form} in pixels.")
    return numbers


def _is_short_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
