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
    supports: Sequence[Path], masks: Sequence[Path], *, label: int | None, color: str | None, invert: bool
) -> "list[Pair]":
    """Read support pictures with their masks, paired in order.

    Raises:
        UsageError: not one mask a support.
        InputError: one cannot be used, or a mask has another size than its picture.
    """
    if len(supports) != len(masks):
        raise UsageError(
            f"--support is given {_times(len(supports))} and --mask {_times(len(masks))}.",
            "Give one --mask for each --support, in the same order.",
        )
    from diffseg_cli.image_io import check_pair, read_image, read_mask

    pairs = []
    for image_path, mask_path in zip(supports, masks, strict=True):
        image, mask = read_image(image_path), read_mask(mask_path, label=label, color=color, invert=invert)
        check_pair(image, mask, image_path, mask_path)
        pairs.append((image, mask))
    return pairs


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
    from diffseg_cli.image_io import check_pair, read_image, read_mask
    from diffseg_cli.mask_values import point_mask

    image = read_image(query)
    if point is not None:
        x, _, y = (part.strip() for part in point.partition(","))
        if not (x.isdecimal() and y.isdecimal()):
            raise UsageError(
                f"'{point}' is not a point.", "Write it as X,Y in pixels, for example --point 320,200."
            )
        return image, point_mask(int(x), int(y), (image.shape[0], image.shape[1]))
    if region is None:
        return image, None
    mask = read_mask(region)
    check_pair(image, mask, query, region)
    return image, mask


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
