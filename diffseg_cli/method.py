"""The method on batched tensors in the model frame: one look, the score map, PAM, the decoded mask.

It is differentiable in SCM and PAM; training uses it as it is, and `segmenter.py` puts images around it.

Letters: b queries, k supports, S image size, H W = S/8, c latent channels, E edge size.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffseg_cli.compute import describe_device
from diffseg_cli.config import SegmentConfig
from diffseg_cli.errors import UsageError
from diffseg_cli.frames import crop_to_object, mask_to_frame, stack_frames
from diffseg_cli.loading import edge_size
from diffseg_cli.models.attention import AttentionMaps, OnLayer, ScoreMaps
from diffseg_cli.models.backbone import Backbone, Control
from diffseg_cli.models.hed import HED
from diffseg_cli.models.hed_student import HedStudent
from diffseg_cli.models.knowledge import FEATURE_KNOWLEDGE, knowledge_scores
from diffseg_cli.models.spatial_control import SpatialControl
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.prediction import SegmenterOutput
from diffseg_cli.timing import Stage, unmetered
from diffseg_cli.trained import Trained
from diffseg_cli.version import __version__
from diffseg_cli.views import Pair
from diffseg_cli.weights.files import tensors_digest

CROSS_MAPS = ("paper", "balanced", "contrast")
SUPPORT_CROPS = ("object", "whole", "both")
Chosen = TypeVar("Chosen", bound="Method")  # typing.Self comes with Python 3.11


def format_of(module: nn.Module) -> torch.dtype:
    """The number format of a trained module, which need not be the backbone's: training keeps float32."""
    return next(module.parameters()).dtype


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Method:
    """A frozen backbone with what was trained on top. It holds no state: `replace` gives one that differs.

    Attributes:
        backbone: frozen, in eval mode.
        trained: SCM and PAM with what was fitted to them.
        hed: edge detector or its student; needed when SCM is there.
        head: "pam" decodes PAM's latents; "attention" takes the score map as it is.
        settings: fusion, how it looks, and defaults of threshold and refinement.
        stage: entered with the name of each stage, for whoever measures them (`timing.Stages`). Work of a GPU
            may still be under way when a stage is left, so a meter of time must wait for it.
    """

    backbone: Backbone
    trained: Trained
    hed: HED | HedStudent | None
    head: str
    settings: SegmentConfig = field(default_factory=SegmentConfig)
    stage: Stage = unmetered

    def __post_init__(self) -> None:
        if self.head == "pam" and "pam" not in self.trained.modules:
            raise ValueError("head 'pam' needs a trained PAM")
        knowledge = self.trained.knowledge
        if knowledge in FEATURE_KNOWLEDGE and self.backbone.adds_noise:
            raise ValueError(f"knowledge '{knowledge}' stands in for a diffusion backbone's and needs none")

    def with_trained(self: Chosen, trained: Trained) -> Chosen:
        """The same backbone and settings under other modules.

        Raises:
            ValueError: the head needs a PAM, and they have none.
        """
        return replace(self, trained=trained)

    @property
    def model(self) -> str:
        return self.backbone.name

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def description(self) -> str:
        """One sentence: model, device, number format, head."""
        names = [name for name in self.trained.modules if self.head == "pam" or name == "scm"]
        modules = " and ".join(name.upper() for name in names)
        how = modules or "attention alone, without trained modules"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.backbone.description} on {describe_device(self.device)} in {dtype}, with {how}"

    @property
    def edge_size(self) -> int:
        """Size the edge detector runs at."""
        return edge_size(self.backbone)

    @property
    def digest(self) -> str:
        """Short hash of everything that decides an answer beside supports, query, seed and machine."""
        backbone = self.backbone
        decides = {
            "backbone": [backbone.name, backbone.fingerprint, backbone.image_size],
            "trained": self.trained.digest,
            "edges": [self.edge_size, tensors_digest(self.hed.state_dict()) if self.hed else None],
            "head": self.head,
            "settings": asdict(self.settings) | {"timesteps": self._timesteps},
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def _crops(self) -> bool:
        """Whether the prompt is made of a support's object from near."""
        return self.settings.support_crop != "whole"

    @property
    def _timesteps(self) -> list[int]:
        """Noise levels of the look; none for a backbone that adds no noise."""
        return list(self.settings.timesteps) if self.backbone.adds_noise else []

    def record(self) -> dict[str, Any]:
        """What computes a result, as plain values for JSON."""
        return {
            "model": self.model,
            "fingerprint": self.backbone.fingerprint,
            "trained": self.trained.record(),
            "head": self.head,
            "fusion": self.settings.fusion,
            "timesteps": self._timesteps,
            "cross_map": self.settings.cross_map,
            "support_crop": self.settings.support_crop,
            "refine": self.settings.refine,
            "min_area": self.settings.min_area,
            "image_size": self.backbone.image_size,
            "edge_size": self.edge_size,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "version": __version__,
        }

    def find_edges(self, images: Tensor) -> Tensor | None:
        """images (b 3 S S) in [0, 1] -> edges (b 1 E E) in [0, 1], or None when nothing reads them."""
        if self.hed is None or "scm" not in self.trained.modules:
            return None
        shrunk = F.interpolate(images.float(), size=(self.edge_size, self.edge_size), mode="area")
        edges: Tensor = self.hed(shrunk)
        return edges

    def make_control(self, latents: Tensor, edges: Tensor | None) -> Control | None:
        """SCM bound to the edges (b 1 E E) of encoded queries (b c H W); None without edges or SCM."""
        modules = self.trained.modules
        scm = modules["scm"] if "scm" in modules else None  # noqa: SIM401 - a ModuleDict has no get
        if edges is None or not isinstance(scm, SpatialControl):
            return None
        dtype = format_of(scm)
        with self.stage("SCM"):
            bound = scm.bind(edges, latents.to(dtype))

        def control(hidden_states: Sequence[Tensor]) -> Sequence[Tensor]:
            with self.stage("SCM"):  # inside the look, which calls it
                residuals = bound([hidden.to(dtype) for hidden in hidden_states])
                return [each.to(hidden) for each, hidden in zip(residuals, hidden_states, strict=True)]

        return control

    def find_scores(
        self,
        latents: Tensor,
        edges: Tensor | None,
        support: SupportFeatures,
        noise: Tensor | None = None,
        on_layer: OnLayer | None = None,
    ) -> tuple[AttentionMaps, ScoreMaps]:
        """One look at encoded queries and its score map; arguments as in `forward`, the supports fused."""
        control = self.make_control(latents, edges)
        with self.stage("look"):
            maps = self.find_maps(latents, support.image_embeds, noise, control, on_layer)
        with self.stage("score map"):
            knowledge = self.trained.knowledge
            return maps, knowledge_scores(knowledge, self.backbone, maps, latents, support, control)

    def find_maps(
        self,
        latents: Tensor,
        image_embeds: Tensor,
        noise: Tensor | None,
        control: Control | None,
        on_layer: OnLayer | None,
    ) -> AttentionMaps:
        """The sums of a look, with the cross-attention of `settings.cross_map`.

        "paper": as it is, for the mean over all layers (section 4.2). "balanced": as a multiple of what even
        attention would give, so that coarse layers do not rule that mean. "contrast": less that of a look for
        nothing, so that places which draw attention whatever is looked for cancel out.

        Args:
            latents: (b c H W) of the queries.
            image_embeds: (b|1 k t d) prompt, supports apart.
            noise: (b c H W), for a backbone that adds noise.
            control: SCM bound to the edges of the queries, or None.
            on_layer: called with each layer of the look for the supports, as attended.
        """

        def look(prompt: Tensor, on_layer: OnLayer | None = None) -> AttentionMaps:
            return self.backbone.look(
                latents,
                prompt.expand(latents.shape[0], -1, -1, -1),
                timesteps=self.settings.timesteps,
                noise=noise,
                control=control,
                on_layer=on_layer,
            )

        if self.settings.cross_map == "contrast":
            nothing = self.backbone.embed_nothing()  # before a look lets CLIP go
            return look(image_embeds, on_layer).less(look(nothing[None]))
        maps = look(image_embeds, on_layer)
        return maps.balanced() if self.settings.cross_map == "balanced" else maps

    def forward(
        self,
        latents: Tensor,
        edges: Tensor | None,
        support: SupportFeatures,
        noise: Tensor | None = None,
        *,
        drops: tuple[Tensor, Tensor] | None = None,
        decode: bool = True,
    ) -> SegmenterOutput:
        """From encoded queries to their masks; differentiable in SCM and PAM.

        Args:
            latents: (b c H W) of the queries.
            edges: (b 1 E E) of the queries in [0, 1], any size; None leaves SCM out.
            support: of the queries, with b or 1 rows.
            noise: (b c H W) unit normal, for a backbone that adds noise.
            drops: what PAM leaves out when training, see there.
            decode: False leaves `mask_image` empty, where a loss does not read it.
        """
        support = support.fused(self.settings.fusion)
        b = latents.shape[0]
        maps, scores = self.find_scores(latents, edges, support, noise)
        if self.head == "attention":
            with self.stage("decode"):
                mask_image = F.interpolate(scores.score_map, scale_factor=8, mode="bilinear")
            return SegmenterOutput(maps, scores, None, mask_image)
        with self.stage("PAM"):
            pam = self.trained.modules["pam"]
            query = latents.to(format_of(pam))
            predicted: Tensor = pam(
                query,
                support.latents.expand(b, -1, -1, -1, -1).to(query),
                support.masks.expand(b, -1, -1, -1, -1).to(query),
                scores.score_map.to(query),
                drops,
            )
        if not decode:
            return SegmenterOutput(maps, scores, predicted, predicted.new_empty(0))
        with self.stage("decode"):
            mask_image = self.backbone.decode_mask(predicted)
            if self.trained.mask_gamma != 1:
                mask_image = mask_image.clamp(0, 1) ** self.trained.mask_gamma
        return SegmenterOutput(maps, scores, predicted, mask_image)

    def predict(
        self, latents: Tensor, edges: Tensor | None, support: SupportFeatures, seed: int = 0
    ) -> SegmenterOutput:
        """`forward` with the noise of a seed, for an answer that is to be used.

        Raises:
            DiffsegError: score map, latents or image hold NaN or infinity.
        """
        with self.stage("look"):
            noise = self.make_noise(latents, seed)
        output = self.forward(latents, edges, support, noise)
        output.check_finite()
        return output

    def check_presence(self, min_presence: float, zoom: str) -> None:
        """Raise UsageError if something is asked that needs a presence score, and there is none."""
        if self.trained.presence is None and (min_presence > 0 or zoom not in ("auto", "off")):
            option = "--min-presence" if min_presence > 0 else "--zoom"
            raise UsageError("Without trained modules there is no presence score.", f"Drop {option}.")

    def make_noise(self, latents: Tensor, seed: int) -> Tensor | None:
        """Unit normal noise like latents (b c H W): one draw a seed, whatever the batch, order or device."""
        if not self.backbone.adds_noise:
            return None
        generator = torch.Generator().manual_seed(seed)
        one = torch.randn(latents.shape[1:], generator=generator)
        return one.to(latents).expand_as(latents)

    @torch.inference_mode()
    def encode_pairs(self, pairs: Sequence[Pair]) -> SupportFeatures:
        """Encode supports once: images uint8 (h w 3) and masks bool (h w) that mark something, any sizes.

        A backbone with a `support_margin` sees them as `settings.support_crop` says: the object from near,
        the whole image, or both, in two views.
        """
        margin, seen = self.backbone.support_margin, self.settings.support_crop
        if margin is None or seen == "whole":
            return self.encode_frames(*self._to_frames(pairs), pairs)
        with self.stage("crop"):
            near = [crop_to_object(*pair, margin) for pair in pairs]
        support = self.encode_frames(*self._to_frames(near), pairs)
        if seen == "object":
            return support
        latents, grid = self._encode_support(*self._to_frames(pairs))
        return support.seen_again(latents[None], grid[None])

    def _to_frames(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Images (k 3 S S) and masks (k 1 S S) in [0, 1]."""
        size = self.backbone.image_size
        with self.stage("crop"):
            frames = stack_frames([image for image, _ in pairs], size).to(self.device)
            return frames, torch.stack([mask_to_frame(mask, size) for _, mask in pairs]).to(self.device)

    def _encode_support(self, frames: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (k c H W) and share of each cell that is object (k 1 H W); arguments as `encode_frames`."""
        with self.stage("encode"):
            latents = self.backbone.encode(frames * masks if self.backbone.masks_support else frames)  # eq. 3
            grid = F.interpolate(masks, size=(latents.shape[2], latents.shape[3]), mode="area").to(latents)
        return latents, grid

    def encode_frames(
        self,
        frames: Tensor,
        masks: Tensor,
        pairs: Sequence[Pair] = (),
    ) -> SupportFeatures:
        """Supports already in the model frame, in one view.

        Args:
            frames: (k 3 S S) in [0, 1].
            masks: (k 1 S S) in [0, 1].
            pairs: the same supports as they were, if they are at hand; some backbones see more in them.
        """
        backbone = self.backbone
        latents, grid = self._encode_support(frames, masks)
        with self.stage("embed"):
            embeds = backbone.embed_pairs(pairs, crop=self._crops) if pairs else None
            if embeds is None:
                embeds = backbone.embed(frames, masks, latents)
        return SupportFeatures.of(backbone, latents[None], grid[None], embeds[None])
