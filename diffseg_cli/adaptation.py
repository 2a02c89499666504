"""Adapt SCM and PAM to one concept: a few gradient steps on its own supports, the backbone frozen.

Every support is encoded once in several views. A step draws episodes among them: a view of one support is the
query, views of the others are its supports (of one support alone, another view of itself).

A few images can teach the wrong thing: what the steps lead to fits the supports better than it fits other
objects of their class. So the modules move part of the way (`reach`), the less the better the start finds
each support with the help of the others, and not at all where there is little to gain. One support says too
little about other objects of its class: they move for it only where there are negatives to learn from.

Letters: b episodes a step, k supports, c latent channels, S image size in the model frame, H W = S/8.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from diffseg_cli.config import AdaptConfig
from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.frames import mask_to_frame, stack_frames
from diffseg_cli.losses import backward_scaled, map_loss, mask_loss
from diffseg_cli.method import Method
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.prediction import SegmenterOutput
from diffseg_cli.results.render import shrunk
from diffseg_cli.trained import Trained
from diffseg_cli.views import Pair, recoloured, zoomed_in, zoomed_out

MOST_SIDES = 4  # longest side of an image that views are made of, in sides of the model frame

# An image (h w 3) and its region (h w) that is not the concept, the rest being unknown; None: all of it.
Negative = tuple[NDArray[np.uint8], NDArray[np.bool_] | None]


@dataclass(frozen=True)
class AdaptStep:
    """One step of an adaptation; the last one carries its result.

    Attributes:
        step: steps done; 0 after each support and negative that was encoded.
        steps: in all.
        loss: of this step; 0 before the first.
        adapted: what came out, with the last step.
    """

    step: int
    steps: int
    loss: float
    adapted: "Adapted | None" = None


@dataclass(frozen=True)
class Adapted:
    """What an adaptation gives.

    Attributes:
        trained: the modules; all else as it was.
        reach: how far they moved towards where the steps led, in [0, 1]; at 0 they are the starting ones.
        before: mean IoU at which the starting modules find each support with the others, in [0, 1]; None
            where that could not change anything, and was not looked at.
        after: the same of the modules that came out, which have seen them all.
    """

    trained: Trained
    reach: float
    before: float | None = None
    after: float | None = None

    def record(self) -> dict[str, Any]:
        """What it is, as plain values for JSON."""
        figures = {"reach": self.reach, "before": self.before, "after": self.after}
        return {**figures, "digest": self.trained.digest}

    def to(self, device: torch.device) -> "Adapted":
        """A copy on a device."""
        modules = copy.deepcopy(self.trained.modules).to(device)
        return replace(self, trained=replace(self.trained, modules=modules))


@dataclass(frozen=True)
class _View:
    """An encoded query.

    Attributes:
        latents: (1 c H W).
        edges: (1 1 E E) or None.
        mask: (1 1 S/2 S/2), the true one.
        counts: (1 1 S/2 S/2) in [0, 1], where the mask is known.
    """

    latents: Tensor
    edges: Tensor | None
    mask: Tensor
    counts: Tensor


class SupportViews:
    """What the frozen backbone sees of the supports and of what is not the concept, encoded once.

    Attributes:
        queries: of each support, the whole image first.
        supports: of each support, encoded as supports are, as it is first.
        absent: of each negative, the whole image first; nothing in what counts is the concept.
    """

    def __init__(self, segmenter: Method, config: AdaptConfig, seed: int) -> None:
        self._segmenter, self._config, self._seed = segmenter, config, seed
        self.queries: list[list[_View]] = []
        self.supports: list[list[SupportFeatures]] = []
        self.absent: list[list[_View]] = []

    def add_support(self, pair: Pair) -> None:
        """Encode the views of one more support."""
        generator = np.random.Generator(np.random.PCG64([self._seed, 0, len(self.queries)]))
        small = self._shrunk(pair)
        self.queries.append(self._query_views(small, generator, self._config.query_views))
        seen = [pair] + [self._near(small, generator) for _ in range(self._config.support_views - 1)]
        self.supports.append([self._segmenter.encode_pairs([each]) for each in seen])

    def add_negative(self, negative: Negative) -> None:
        """Encode the views of one more image without the concept."""
        image, region = negative
        generator = np.random.Generator(np.random.PCG64([self._seed, 1, len(self.absent)]))
        marked = np.zeros(image.shape[:2], dtype=bool) if region is None else region
        views = self._query_views(self._shrunk((image, marked)), generator, self._config.query_views)
        if region is not None:
            views = [replace(view, mask=torch.zeros_like(view.mask), counts=view.mask) for view in views]
        self.absent.append(views)

    def _shrunk(self, pair: Pair) -> Pair:
        """A large image no finer than its views can show; as it is where nothing marked would be left."""
        longest = MOST_SIDES * self._segmenter.backbone.image_size
        mask = shrunk(pair[1].astype(np.uint8) * 255, longest) > 127
        return (shrunk(pair[0], longest), mask) if mask.any() == pair[1].any() else pair

    def _query_views(self, pair: Pair, generator: np.random.Generator, count: int) -> list[_View]:
        """The image as it is, then zoomed in and out in turn: the object is seen at other sizes."""
        changes = (zoomed_in, zoomed_out)
        changed = [recoloured(changes[i % 2](pair, generator), generator) for i in range(count - 1)]
        return [self._look(each) for each in (pair, *changed)]

    def _near(self, pair: Pair, generator: np.random.Generator) -> Pair:
        return recoloured(zoomed_in(pair, generator) if generator.random() < 0.5 else pair, generator)

    @torch.inference_mode()
    def _look(self, pair: Pair) -> _View:
        backbone = self._segmenter.backbone
        size = backbone.image_size
        frames = stack_frames([pair[0]], size).to(backbone.device)
        mask = F.interpolate(mask_to_frame(pair[1], size)[None], size=(size // 2, size // 2), mode="area")
        mask = mask.to(backbone.device)
        edges = self._segmenter.find_edges(frames)
        return _View(backbone.encode(frames), edges, mask, torch.ones_like(mask))

    def draw(self, generator: np.random.Generator) -> tuple[list[_View], SupportFeatures, list[bool]]:
        """The episodes of a step: b queries, their supports (b k ...), and whether each holds the concept."""
        config, held = self._config, len(self.queries)
        shots = int(generator.integers(1, min(config.most_shots, held - 1) + 1)) if held > 1 else 1
        queries, supports, holds = [], [], []
        for _ in range(config.batch_size):
            index = int(generator.integers(held))
            others = [other for other in range(held) if other != index] or [index]
            chosen = [self.supports[int(other)] for other in generator.permutation(others)[:shots]]
            supports.append(
                SupportFeatures.join([seen[int(generator.integers(len(seen)))] for seen in chosen])
            )
            absent = bool(self.absent) and generator.random() < config.absent_share
            pool = [view for views in self.absent for view in views] if absent else self.queries[index]
            queries.append(pool[int(generator.integers(len(pool)))])
            holds.append(not absent)
        return queries, SupportFeatures.stack(supports), holds

    @staticmethod
    def forward(
        segmenter: Method, queries: Sequence[_View], support: SupportFeatures, seed: int
    ) -> tuple[SegmenterOutput, Tensor, Tensor]:
        """The answer to b views, `mask` and `counts` (b 1 S/2 S/2) of all; support with b or 1 rows."""
        latents, masks, counts = (
            torch.cat([getattr(view, name) for view in queries]) for name in ("latents", "mask", "counts")
        )
        edges = [view.edges for view in queries if view.edges is not None]
        noise = segmenter.make_noise(latents, seed)
        return segmenter.forward(latents, torch.cat(edges) if edges else None, support, noise), masks, counts


# --- steps ---------------------------------------------------------------------------------------------


def adapt_steps(
    segmenter: Method,
    pairs: Sequence[Pair],
    *,
    negatives: Sequence[Negative] = (),
    config: AdaptConfig | None = None,
    seed: int = 0,
) -> Iterator[AdaptStep]:
    """Adapt a segmenter's modules to the concept of some supports; the segmenter itself is not changed.

    The same for a seed, up to the last bits that the number of threads and the processor change in any sum.

    Args:
        segmenter: with a trained PAM.
        pairs: the supports, images (h w 3) and masks (h w) that mark something.
        negatives: images (h w 3), each with a region (h w) that is not the concept, or None for all of it.
        config: the numbers; default `AdaptConfig`.
        seed: of views and episodes.

    Returns:
        Every step, the last one with what came out; no others after encoding where there is nothing to gain.

    Raises:
        UsageError: there is no PAM to adapt, or there are too many supports.
        InputError: there is no support.
    """
    config = config or AdaptConfig()
    if segmenter.head != "pam":
        raise UsageError(
            "There are no trained modules to adapt.", "Leave --adapt out, or give a --checkpoint with a PAM."
        )
    if not pairs:
        raise InputError("There is no support to adapt to.", "Give at least one image with its mask.")
    if len(pairs) > config.most_supports:
        raise UsageError(
            f"Adaptation takes up to {config.most_supports} supports, and there are {len(pairs)}.",
            "Choose the most different ones, or use `diffseg train` for so many.",
        )
    return _steps(segmenter, pairs, negatives, config, seed)


def _steps(
    segmenter: Method,
    pairs: Sequence[Pair],
    negatives: Sequence[Negative],
    config: AdaptConfig,
    seed: int,
) -> Iterator[AdaptStep]:
    if len(pairs) == 1 and not negatives:
        yield AdaptStep(config.steps, config.steps, 0.0, Adapted(segmenter.trained, 0.0))
        return
    views = SupportViews(segmenter, config, seed)
    for pair in pairs:
        views.add_support(pair)
        yield AdaptStep(0, config.steps, 0.0)
    for negative in negatives:
        views.add_negative(negative)
        yield AdaptStep(0, config.steps, 0.0)
    before = _found(segmenter, views)
    reach = config.reach if len(pairs) > 1 else config.single_reach
    if not negatives:  # else there is something to learn, however well the concept is found
        reach = min(reach, round(config.eagerness * (config.found_enough - before), 2))
    if reach < config.least_reach:
        yield AdaptStep(config.steps, config.steps, 0.0, Adapted(segmenter.trained, 0.0, before, before))
        return
    start = segmenter.trained.modules
    modules = copy.deepcopy(start).float().requires_grad_(True)
    # As in training, the loss sees the mask before gamma. Modules stay in eval mode: nothing is dropped.
    learner = segmenter.with_trained(replace(segmenter.trained, modules=modules, mask_gamma=1.0))
    optimizer = torch.optim.AdamW(modules.parameters(), lr=config.lr, weight_decay=0.0)
    generator = np.random.Generator(np.random.PCG64([seed, 2]))
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        loss = _loss(learner, views, generator, config, step)
        optimizer.zero_grad(set_to_none=True)
        backward_scaled(loss, modules.parameters(), segmenter.dtype)
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        last = step + 1 == config.steps
        adapted = _follow(segmenter, modules, views, reach, before) if last else None
        yield AdaptStep(step + 1, config.steps, float(loss.detach()), adapted)


def _loss(
    learner: Method, views: SupportViews, generator: np.random.Generator, config: AdaptConfig, step: int
) -> Tensor:
    """Of the episodes of one step."""
    queries, support, holds = views.draw(generator)
    # The modules learn in float32; under a backbone in half precision they compute as it does.
    device, dtype = learner.device, learner.dtype
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        output, masks, counts = views.forward(learner, queries, support, step)
    # What does not count is black, as nothing is there, and gives no gradient.
    decoded = F.interpolate(output.mask_image.float(), size=masks.shape[-2:], mode="area") * counts
    loss = config.mask_weight * mask_loss(decoded, masks)
    if any(holds):  # some place is the brightest of every score map, so an absent concept teaches it nothing
        chosen_rows = torch.tensor(holds, device=masks.device)
        score_map = output.scores.score_map.float()[chosen_rows]
        loss = loss + config.map_weight * map_loss(score_map, masks[chosen_rows])
    return loss


# --- how far -------------------------------------------------------------------------------------------


def _follow(
    segmenter: Method, modules: nn.ModuleDict, views: SupportViews, reach: float, before: float
) -> Adapted:
    """Move part of the way, unless even the supports are found worse there, by more than negatives gain."""
    start = segmenter.trained
    source = f"{start.source}, adapted to {len(views.queries)} supports"
    moved = replace(start, modules=_between(start.modules, modules, reach), source=source)
    learner = segmenter.with_trained(moved)
    after = _found(learner, views)
    if after - _marked_wrongly(learner, views) >= before - _marked_wrongly(segmenter, views):
        return Adapted(moved, reach, before, after)
    return Adapted(start, 0.0, before, before)


@torch.inference_mode()
def _found(segmenter: Method, views: SupportViews) -> float:
    """Mean IoU in [0, 1] of each support found with the others; of one alone, of its views."""
    held = range(len(views.queries))
    ious = []
    for index in held:
        others = [views.supports[other][0] for other in held if other != index]
        support = SupportFeatures.join(others or [views.supports[index][-1]])
        for view in views.queries[index][:1] if others else views.queries[index]:
            output, marked, _ = views.forward(segmenter, [view], support, 0)
            found = F.interpolate(output.mask_image.float(), size=marked.shape[-2:], mode="area") > 0.5
            hit, either = (found & (marked > 0.5)).sum(), (found | (marked > 0.5)).sum()
            ious.append(float(hit / either.clamp_min(1)))
    return float(np.mean(ious))


@torch.inference_mode()
def _marked_wrongly(segmenter: Method, views: SupportViews) -> float:
    """Mean share in [0, 1] of what is not the concept that is marked, over the negatives; 0 without any."""
    support = SupportFeatures.join([seen[0] for seen in views.supports])
    shares = []
    for view, *_ in views.absent:
        output, _, counts = views.forward(segmenter, [view], support, 0)
        found = F.interpolate(output.mask_image.float(), size=counts.shape[-2:], mode="area") > 0.5
        shares.append(float((found * counts).sum() / counts.sum().clamp_min(1e-6)))
    return float(np.mean(shares)) if shares else 0.0


def _between(start: nn.ModuleDict, end: nn.ModuleDict, reach: float) -> nn.ModuleDict:
    """Every weight at `reach` between two, without gradients, in the number format of the first.

    Rounded to half precision, in which files keep it: what is judged is what is read again.
    """
    between, target = copy.deepcopy(start), end.state_dict()
    with torch.no_grad():
        for name, value in between.state_dict().items():
            value.copy_(torch.lerp(value.float(), target[name].float(), reach).half())
    return between.eval().requires_grad_(False)
