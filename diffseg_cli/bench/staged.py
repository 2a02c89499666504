"""The method one piece after the other, each in its stage.

The same public pieces as in `Segmenter.encode_support`, `encode_queries` and `segment_encoded`, in the same
order. A test holds both to the same masks and the same number of operations.

Letters: b queries, k supports, S picture size, H W = S/8.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg_cli.bench.meters import Stage
from diffseg_cli.files import write_whole
from diffseg_cli.frames import crop_to_object, from_frame, mask_to_frame, stack_frames
from diffseg_cli.models.knowledge import knowledge_scores
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.prediction import Prediction, SegmenterOutput
from diffseg_cli.presence import presence_features
from diffseg_cli.reading.image_io import read_image, read_pair
from diffseg_cli.refine import refine_borders
from diffseg_cli.results.outputs import DEFAULT_FORMATS, PICTURE_FILES, Found, Scene, result_bytes
from diffseg_cli.segmenter import Segmenter

Pairs = Sequence[tuple[Path, Path]]

SUPPORT_STAGES = ("read", "crop", "encode", "embed")
QUERY_STAGES = (
    *("read", "frame", "edges", "encode", "look", "SCM", "score map", "PAM", "decode", "presence"),
    *("resize", "refine", "write"),
)


@torch.inference_mode()
def staged_support(segmenter: Segmenter, pairs: Pairs, stage: Stage) -> SupportFeatures:
    """`Segmenter.encode_support` in stages.

    read: files to arrays. crop: to the object where the backbone wants that, and to the model frame; the crop
    CLIP sees is part of embed. encode: to latents. embed: to the prompt.
    """
    backbone = segmenter.backbone
    with stage("read"):
        read = [read_pair(image, mask) for image, mask in pairs]
    with stage("crop"):
        if backbone.support_margin is not None:
            read = [crop_to_object(image, mask, backbone.support_margin) for image, mask in read]
        frames = stack_frames([image for image, _ in read], backbone.image_size).to(segmenter.device)
        mask_frames = torch.stack([mask_to_frame(mask, backbone.image_size) for _, mask in read])
        mask_frames = mask_frames.to(segmenter.device)
    with stage("encode"):
        latents = backbone.encode(frames * mask_frames if backbone.masks_support else frames)
        grid = F.interpolate(mask_frames, size=(latents.shape[2], latents.shape[3]), mode="area")
    with stage("embed"):
        embeds = backbone.embed(frames, mask_frames, latents)
    return SupportFeatures.of(backbone, latents[None], grid.to(latents)[None], embeds[None])


@torch.inference_mode()
def staged_queries(
    segmenter: Segmenter, queries: Sequence[Path], support: SupportFeatures, out: Path, stage: Stage
) -> list[Prediction]:
    """`encode_queries` and `segment_encoded` in stages, and the files `diffseg segment` writes by default.

    read: files to arrays. frame: to the model frame. edges: HED. SCM: its part on edges and inside the look,
    which is charged without it. score map: eq. 11. resize: back to the picture's own size. refine: borders.
    """
    backbone = segmenter.backbone
    with stage("read"):
        images = [read_image(query) for query in queries]
    with stage("frame"):
        frames = stack_frames(images, backbone.image_size).to(segmenter.device)
    with stage("edges"):
        edges = segmenter.find_edges(frames)
    with stage("encode"):
        latents = backbone.encode(frames)
    output = staged_forward(segmenter, latents, edges, support, stage)
    with stage("presence"):
        presences: list[float] | list[None] = [None] * len(images)
        if segmenter.trained.presence is not None:
            presences = segmenter.trained.presence.score(presence_features(output, latents, support)).tolist()
    with stage("resize"):
        picture = output.picture.float().clamp(0, 1).cpu()
        score_map = output.scores.score_map.float().cpu()
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        probabilities = [from_frame(picture[index, 0], size_hw) for index, size_hw in enumerate(sizes)]
        shown = [from_frame(score_map[index, 0], size_hw) for index, size_hw in enumerate(sizes)]
    with stage("refine"):
        if segmenter.settings.refine:
            probabilities = [refine_borders(p, image) for p, image in zip(probabilities, images, strict=True)]
    threshold = segmenter.settings.threshold
    predictions = [
        Prediction(probability > threshold, probability, score, presence, threshold, {})
        for probability, score, presence in zip(probabilities, shown, presences, strict=True)
    ]
    with stage("write"):
        write_predictions(queries, images, predictions, out)
    return predictions


def staged_forward(
    segmenter: Segmenter, latents: Tensor, edges: Tensor | None, support: SupportFeatures, stage: Stage
) -> SegmenterOutput:
    """`Segmenter.forward` in stages."""
    b = latents.shape[0]
    support = support.fused(segmenter.settings.fusion)
    with stage("SCM"):
        control = segmenter.make_control(latents, edges)

    def charged(hidden_states: Sequence[Tensor]) -> Sequence[Tensor]:
        assert control is not None
        with stage("SCM"):
            return control(hidden_states)

    with stage("look"):
        noise = segmenter.make_noise(latents, seed=0)
        maps = segmenter.backbone.look(
            latents,
            support.image_embeds.expand(b, -1, -1, -1),
            timesteps=segmenter.settings.timesteps,
            noise=noise,
            control=None if control is None else charged,
        )
    with stage("score map"):
        scores = knowledge_scores(
            segmenter.trained.knowledge, segmenter.backbone, maps, latents, support, control
        )
    if segmenter.head == "attention":
        with stage("decode"):
            picture = F.interpolate(scores.score_map, scale_factor=8, mode="bilinear")
        return SegmenterOutput(maps, scores, None, picture)
    with stage("PAM"):
        predicted: Tensor = segmenter.trained.modules["pam"](
            latents,
            support.latents.expand(b, -1, -1, -1, -1).to(latents),
            support.masks.expand(b, -1, -1, -1, -1).to(latents),
            scores.score_map.to(latents),
        )
    with stage("decode"):
        picture = segmenter.backbone.decode_mask(predicted)
        if segmenter.trained.mask_gamma != 1:
            picture = picture.clamp(0, 1) ** segmenter.trained.mask_gamma
    return SegmenterOutput(maps, scores, predicted, picture)


def write_predictions(
    queries: Sequence[Path],
    images: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]],
    predictions: Sequence[Prediction],
    out: Path,
) -> None:
    """Write what `diffseg segment` writes by default for each picture."""
    for index, (query, image, found) in enumerate(zip(queries, images, predictions, strict=True)):
        thing = Found("object", found.mask, found.probability, found.score_map, found.presence)
        for what in DEFAULT_FORMATS:
            path = out / f"{index}{PICTURE_FILES[what]}"
            write_whole(path, result_bytes(what, path, Scene(query, image, [thing])))
