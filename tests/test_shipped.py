"""The shipped compact model on real photographs, as a person meets it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.segmenter import Segmenter

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return load_segmenter("compact", device="cpu")


def truth(path: str) -> np.ndarray:
    return np.asarray(Image.open(EXAMPLES / path)) > 127


def find(segmenter: Segmenter, support: str, query: str) -> np.ndarray:
    pair = (EXAMPLES / f"{support}.jpg", EXAMPLES / f"{support}_mask.png")
    return segmenter.segment(EXAMPLES / query, segmenter.encode_support([pair])).mask


def iou(predicted: np.ndarray, expected: np.ndarray) -> float:
    return float((predicted & expected).sum() / (predicted | expected).sum())


@pytest.mark.parametrize(
    ("support", "query", "expected", "least"),
    [
        ("bird/support", "bird/query.jpg", "bird/query_mask.png", 0.75),
        ("dog/support", "dog/query.jpg", "dog/query_mask.png", 0.65),
        ("windmill/support", "windmill/query.jpg", "windmill/query_mask.png", 0.65),
        (
            "hard_spotted_cats/support",
            "hard_spotted_cats/query.jpg",
            "hard_spotted_cats/query_mask.png",
            0.65,
        ),
        ("horse/support", "horse/query.jpg", "horse/query_mask.png", 0.55),
    ],
)
def test_finds_the_thing(segmenter: Segmenter, support: str, query: str, expected: str, least: float) -> None:
    assert iou(find(segmenter, support, query), truth(expected)) > least


def test_two_supports_find_two_things_in_one_picture(segmenter: Segmenter) -> None:
    """The paper's figure 5: the answer follows the support."""
    masks = {
        which: find(segmenter, f"bee_and_flower/support_{which}", "bee_and_flower/query.jpg")
        for which in "ab"
    }
    wanted = {which: truth(f"bee_and_flower/query_mask_{which}.png") for which in "ab"}
    for which, other in ("ab", "ba"):
        assert iou(masks[which], wanted[which]) > iou(masks[other], wanted[which])
        assert iou(masks[which], wanted[which]) > iou(masks[which], wanted[other])


def test_rotated_photographs_are_seen_upright(segmenter: Segmenter, tmp_path: Path) -> None:
    """The same picture stored sideways with an EXIF flag gives the same mask, the size a viewer shows."""
    upright = Image.open(EXAMPLES / "bird/query.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left; a viewer turns it right
    sideways = tmp_path / "sideways.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(sideways, exif=exif)
    assert ImageOps.exif_transpose(Image.open(sideways)).size == upright.size
    pair = (EXAMPLES / "bird/support.jpg", EXAMPLES / "bird/support_mask.png")
    support = segmenter.encode_support([pair])
    plain, turned = (segmenter.segment(q, support) for q in (EXAMPLES / "bird/query.jpg", sideways))
    assert plain.mask.shape == turned.mask.shape == upright.size[::-1]
    assert iou(plain.mask, turned.mask) > 0.99


def test_decoder_gives_masks_and_pictures_back(segmenter: Segmenter) -> None:
    """Eq. 9 and 10 rest on it: a mask picture survives encoding and decoding."""
    import torch

    from diffseg_cli.frames import mask_to_frame

    mask = truth("bird/query_mask.png")
    frame = mask_to_frame(mask, segmenter.backbone.image_size)
    with torch.inference_mode():
        backbone = segmenter.backbone
        decoded = backbone.decode(backbone.encode(frame.expand(3, -1, -1)[None])).mean(1)[0] > 0.5
    assert iou(decoded.numpy(), (frame[0] > 0.5).numpy()) > 0.85


def test_everything_shipped_is_intact() -> None:
    from diffseg_cli.weights.files import verify, weights_roots

    root = next(root for root in weights_roots() if (root / "manifest.json").is_file())
    assert {status for _, status in verify(root)} == {"ok"}


@pytest.mark.gpu
def test_half_precision_on_a_gpu_finds_the_same(segmenter: Segmenter) -> None:
    fast = load_segmenter("compact", device="cuda", dtype="bfloat16")
    for thing in ("bird", "dog"):
        masks = [find(each, f"{thing}/support", f"{thing}/query.jpg") for each in (segmenter, fast)]
        assert iou(*masks) > 0.95
