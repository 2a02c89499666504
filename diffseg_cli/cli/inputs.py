"""What verbs check and read before anything slow starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg_cli.errors import UsageError
from diffseg_cli.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffseg_cli.segmenter import Segmenter

    Pair = tuple[NDArray[np.uint8], NDArray[np.bool_]]


@dataclass(frozen=True)
class Plan:
    """One picture and the files its results go to."""

    query: Path
    outputs: dict[str, Path]


def plan_outputs(
    queries: Sequence[Path], out: Path, suffixes: Mapping[str, str], inputs: Sequence[Path]
) -> list[Plan]:
    """Name every result, and refuse a run that would lose one or an input; then check that it can be done.

    Args:
        queries: pictures to work on.
        out: folder of the results.
        suffixes: result -> what follows the query's stem in its file name.
        inputs: other files of the run.

    Raises:
        UsageError: two results, or a result and an input, have the same name.
        InputError: a query cannot be opened, or the folder cannot be written.
    """
    from diffseg_cli.image_io import check_image
    from diffseg_cli.render import check_folder

    plans = [
        Plan(query, {what: out / f"{query.stem}{suffix}" for what, suffix in suffixes.items()})
        for query in queries
    ]
    owner: dict[str, Path] = {}
    read = {path.resolve() for path in [*queries, *inputs]}
    for plan in plans:
        for output in plan.outputs.values():
            other = owner.setdefault(str(output).casefold(), plan.query)  # some file systems ignore case
            if other is not plan.query:
                raise UsageError(
                    f"{other} and {plan.query} would both be written to {output}.",
                    "Rename one of them, or run them apart with different --out.",
                )
            if output.resolve() in read:
                raise UsageError(
                    f"{output} is read by this run and would be overwritten.", "Choose another --out."
                )
    for query in queries:
        check_image(query)
    check_folder(out)
    return plans


def read_supports(
    supports: Sequence[Path], masks: Sequence[Path], *, fit: bool = False, **choice: Any
) -> "list[Pair]":
    """Read support pictures with their masks, paired in order.

    Args:
        supports: pictures.
        masks: one each.
        fit: bring masks of another size to that of their picture.
        choice: label, color, category, annotation, invert of `image_io.read_mask`.

    Raises:
        UsageError: not one mask a support, or two choices that exclude each other.
        InputError: one cannot be used, or a mask has another size than its picture.
    """
    if len(supports) != len(masks):
        raise UsageError(
            f"--support is given {_times(len(supports))} and --mask {_times(len(masks))}.",
            "Give one --mask for each --support, in the same order.",
        )
    from diffseg_cli.image_io import read_pair

    return [read_pair(image, mask, fit=fit, **choice) for image, mask in zip(supports, masks, strict=True)]


def read_query(
    query: Path, point: str | None, region: Path | None
) -> "tuple[NDArray[np.uint8], NDArray[np.bool_] | None]":
    """Read a picture to look at, and the place or area whose affinity is asked for, if one is chosen.

    Raises:
        UsageError: both a point and a region, or a point that is none or lies outside.
        InputError: the picture or the region's mask cannot be used, or their sizes differ.
    """
    if point is not None and region is not None:
        raise UsageError("--point and --region both choose a region.", "Give one of them.")
    from diffseg_cli.image_io import read_image, read_pair
    from diffseg_cli.mask_values import point_mask

    if region is not None:
        return read_pair(query, region)
    image = read_image(query)
    if point is None:
        return image, None
    x, y = parse_point(point, "--point")
    return image, point_mask(x, y, (image.shape[0], image.shape[1]))


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
    """Numbers between commas, such as a box or an outline.

    Args:
        text: what the user wrote.
        option: it belongs to, for the message.
        form: what it should look like, for the message.
        least: how few there may be.
        most: how many.

    Raises:
        UsageError: it is something else.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not least <= len(numbers) <= most or not all(abs(number) < 1e9 for number in numbers):
        raise UsageError(f"'{text}' does not fit {option}.", f"Write it as {form} in pixels.")
    return numbers


def _is_short_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def model_record(segmenter: "Segmenter") -> dict[str, Any]:
    """What computed a result, for JSON and for the files of `attn`."""
    return {
        "model": segmenter.model,
        "fingerprint": segmenter.backbone.fingerprint,
        "head": segmenter.head,
        "fusion": segmenter.settings.fusion,
        "device": str(segmenter.device),
        "dtype": str(segmenter.dtype).removeprefix("torch."),
        "version": __version__,
    }


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
