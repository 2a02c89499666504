"""The values the segmenter takes and gives.

Letters: b queries, S image size, H W = S/8, c latent channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffseg_cli.config import SegmentConfig
from diffseg_cli.errors import DiffsegError, InputError
from diffseg_cli.files import write_whole
from diffseg_cli.models.attention import AttentionMaps, ScoreMaps
from diffseg_cli.results.annotations import box_xywh
from diffseg_cli.results.formats import FORMATS, UNNAMED, encode_image, format_of
from diffseg_cli.results.outputs import ConceptResult, Scene, number_instances
from diffseg_cli.results.render import overlay, png_bytes, shrunk
from diffseg_cli.specks import drop_specks
from diffseg_cli.zoom import Window, WindowLook

BEST_SHARE = 1 / 64  # of the places: how many count as a look's best
SHOWN = 1024  # longest side in pixels of what a notebook shows


@dataclass(frozen=True, eq=False, repr=False)
class QueryFeatures:
    """Read and encoded queries, in which any number of concepts can be looked for.

    Attributes:
        images: uint8 (h w 3) of each, its own size.
        latents: (b c H W).
        edges: (b 1 E E) in [0, 1], or None when nothing reads them.
        seconds: wall time of each stage, of all of them together.
    """

    images: list[NDArray[np.uint8]]
    latents: Tensor
    edges: Tensor | None
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class SegmenterOutput:
    """What `Segmenter.forward` gives, in the model frame.

    Attributes:
        maps: the running sums of the look.
        scores: score map and its raw forms, (b 1 H W).
        latents: (b c H W) `L_pre`, or None for the attention head.
        mask_image: (b 1 S S) channel mean of the decoded latents, the predicted mask, about [0, 1] and
            not clipped; for the attention head the score map brought to S.
    """

    maps: AttentionMaps
    scores: ScoreMaps
    latents: Tensor | None
    mask_image: Tensor

    @property
    def probability(self) -> Tensor:
        """(b 1 S S) float32 in [0, 1]: `mask_image` clipped, on its device."""
        return self.mask_image.float().clamp(0, 1)

    @property
    def prompt_share(self) -> Tensor:
        """(b) float32 in [0, 1]: share of their attention that the best places give to the prompt, mean."""
        places = self.scores.cross_map.flatten(1)
        return places.topk(max(1, int(places.shape[1] * BEST_SHARE)), dim=1).values.mean(1).float()

    def at_windows(self, windows: Sequence[Window], presences: Sequence[float]) -> list[WindowLook]:
        """The queries as looks at the windows they were cut from, on the CPU."""
        found = self.probability.cpu().numpy()[:, 0], self.scores.cross_map.float().cpu().numpy()[:, 0]
        each = zip(windows, found[0], presences, found[1], self.prompt_share.tolist(), strict=True)
        return [WindowLook(*about) for about in each]

    def check_finite(self) -> None:
        """Raise as `check_finite` for score map, latents and image."""
        parts = [self.scores.score_map, self.mask_image]
        check_finite(*parts, *([] if self.latents is None else [self.latents]))


def check_finite(*values: Tensor) -> None:
    """An answer made of NaN would read as "nothing found".

    Raises:
        DiffsegError: one of them holds NaN or infinity.
    """
    if not bool(torch.stack([each.isfinite().all() for each in values]).all()):
        raise DiffsegError(
            "The model's answer is not finite (NaN or infinity); numbers that overflowed in half precision "
            "are the likely cause.",
            "Use --dtype float32; if that is what you have, look for damage with `diffseg models verify`.",
        )


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """One segmented query, in its own size and orientation; a notebook shows it as an overlay.

    Attributes:
        mask: bool (h w).
        probability: float32 (h w) in [0, 1], borders refined if that was asked for.
        score_map: float32 (h w) `M_a` in [0, 1] of the look at the whole image, before PAM.
        presence: in [0, 1], how sure it is that the concept is in the image, of the looks that
            decided; None without calibration.
        threshold: what `mask` was cut at.
        seconds: wall time of each stage; shared stages of a batch are divided by its size.
        image: uint8 (h w 3), the query.
        path: of the query, or None where it was no file.
        name: of the concept.
        looks: at windows of it, after the one at all of it.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    score_map: NDArray[np.float32]
    presence: float | None
    threshold: float
    seconds: dict[str, float]
    image: NDArray[np.uint8]
    path: Path | None = None
    name: str = UNNAMED
    looks: tuple[WindowLook, ...] = ()

    def __repr__(self) -> str:
        h, w = self.mask.shape
        parts = [str(self.path)] if self.path else []
        parts += [f"{w} x {h} px", f"{self.mask.mean():.1%} {self.name}"]
        parts += [] if self.presence is None else [f"presence {self.presence:.2f}"]
        return f"Prediction({', '.join(parts)})"

    def _repr_png_(self) -> bytes:
        return png_bytes(shrunk(overlay(self.image, self.mask), SHOWN))

    @property
    def windows(self) -> tuple[Window, ...]:
        """Where it looked again, closer."""
        return tuple(look.window for look in self.looks)

    @property
    def box(self) -> list[int] | None:
        """Left, top, width and height of the mask in pixels; None where it is empty."""
        return box_xywh(self.mask) if self.mask.any() else None

    def at(self, threshold: float, min_area: str = SegmentConfig.min_area) -> "Prediction":
        """The same at another cut.

        Args:
            threshold: of the probability, in (0, 1).
            min_area: of parts of the mask and of holes, as for `choices.least_pixels`.
        """
        mask = drop_specks(self.probability > np.float32(threshold), min_area)
        return replace(self, mask=mask, threshold=threshold)

    def overlay(self) -> Image.Image:
        """The query with the mask tinted and outlined."""
        return Image.fromarray(overlay(self.image, self.mask))

    def save(self, path: str | Path, format: str | None = None) -> None:
        """Write the mask, or what else a format holds.

        Args:
            path: of the file, whole or not there; one that exists is replaced.
            format: of `--format`, with a file per image; default by the name: `scene_overlay.png`,
                `scene_cutout.png` and the like as the command line names them, any other .png the mask, .npy
                the probability, .json LabelMe's outlines, .txt YOLO's.

        Raises:
            InputError: there is no such format, LabelMe is asked of an image that is no file, or the file
                cannot be written.
        """
        path = Path(path)
        chosen = format or format_of(path.name)
        if chosen is None or chosen not in FORMATS or not FORMATS[chosen].pattern:
            known = ", ".join(name for name, each in FORMATS.items() if each.pattern)
            raise InputError(
                f"{path} has no format for one image"
                + (f", and there is none called {format}." if format else " by its name."),
                f"End it in .png, .npy, .json or .txt, or give format=, one of {known}.",
            )
        if chosen == "labelme" and self.path is None:
            raise InputError(
                f"{path} would have to name its image, which is no file.", "Segment a path to use LabelMe."
            )
        found = [
            ConceptResult(self.name, self.mask, self.probability, self.score_map, self.presence, self.windows)
        ]
        scene = Scene(
            self.path or path, self.image, number_instances(found) if chosen == "instances" else found
        )
        write_whole(path, encode_image(chosen, path, scene))


@dataclass(frozen=True, eq=False, repr=False)
class Look:
    """A look at one query, for `diffseg attn`.

    Attributes:
        maps: running sums, batch of one.
        scores: maps of eq. 11, (1 1 H W).
        image_hw: the query's own size.
    """

    maps: AttentionMaps
    scores: ScoreMaps
    image_hw: tuple[int, int]
