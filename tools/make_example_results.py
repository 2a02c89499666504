"""Run the shipped model on every example and write the images and the table of examples/README.md.

    python -m tools.make_example_results

Writes examples/results/*.jpg (heatmap and overlay of each query, at most 360 px), its teaser.png and,
between the markers in examples/README.md, the table with the IoU against the hand-made masks.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.reading.image_io import read_image, read_mask
from diffseg_cli.results.render import heatmap, overlay

EXAMPLES = Path(__file__).parents[1] / "examples"
RESULTS = EXAMPLES / "results"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
LONGEST = 360

# support, query, expected mask
CASES = [
    ("bird/support", "bird/query", "bird/query_mask"),
    ("bird/support", "bird/query2", "bird/query2_mask"),
    ("bee_and_flower/support_a", "bee_and_flower/query", "bee_and_flower/query_mask_a"),
    ("bee_and_flower/support_b", "bee_and_flower/query", "bee_and_flower/query_mask_b"),
    ("cup_and_spoon/support_a", "cup_and_spoon/query", "cup_and_spoon/query_mask_a"),
    ("cup_and_spoon/support_b", "cup_and_spoon/query", "cup_and_spoon/query_mask_b"),
    ("cat/support", "cat/query", "cat/query_mask"),
    ("dog/support", "dog/query", "dog/query_mask"),
    ("giraffe/support", "giraffe/query", "giraffe/query_mask"),
    ("horse/support", "horse/query", "horse/query_mask"),
    ("windmill/support", "windmill/query", "windmill/query_mask"),
    ("windmill/support", "windmill/query2", "windmill/query2_mask"),
    ("bird/support", "hard_bird/query", "hard_bird/query_mask"),
    ("hard_spotted_cats/support", "hard_spotted_cats/query", "hard_spotted_cats/query_mask"),
    ("absent/support", "absent/query", "absent/query_mask"),
    ("absent/support", "absent/query2", "absent/query2_mask"),
]


def save(array: np.ndarray, name: str) -> str:
    """Write a small JPEG; returns its path as README.md names it."""
    image = Image.fromarray(array)
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    image.save(RESULTS / name, quality=85)
    return f"results/{name}"


def shown(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A support as it is meant: its background darkened."""
    return np.where(mask[..., None], image, image // 4)


def row(images: list[np.ndarray], height: int = 260, gap: int = 8) -> Image.Image:
    """Images side by side at one height, on white."""
    scaled = [
        Image.fromarray(p).resize((round(p.shape[1] * height / p.shape[0]), height), Image.Resampling.LANCZOS)
        for p in images
    ]
    page = Image.new("RGB", (sum(s.width + gap for s in scaled) - gap, height), "white")
    left = 0
    for image in scaled:
        page.paste(image, (left, 0))
        left += image.width + gap
    return page


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    segmenter = load_segmenter("compact", device="cpu")
    lines = ["| Support | Query | Heatmap | Found | IoU |", "|---|---|---|---|---|"]
    for support_name, query_name, expected_name in CASES:
        support_image, support_mask = (EXAMPLES / f"{support_name}{end}" for end in (".jpg", "_mask.png"))
        support = segmenter.encode_support([(support_image, support_mask)])
        query = read_image(EXAMPLES / f"{query_name}.jpg")
        prediction = segmenter.segment(query, support)
        expected = np.asarray(Image.open(EXAMPLES / f"{expected_name}.png")) > 127
        either = (prediction.mask | expected).sum()
        figure = f"{(prediction.mask & expected).sum() / either:.2f}" if expected.any() else "absent"
        name = expected_name.replace("/", "_").replace("_query", "").replace("_mask", "")
        heat, found = heatmap(prediction.score_map, query), overlay(query, prediction.mask)
        paths = [save(heat, f"{name}_heatmap.jpg"), save(found, f"{name}_overlay.jpg")]
        cells = [f"{support_name}.jpg", f"{query_name}.jpg", *paths]
        shown_cells = " | ".join(f'<img src="{cell}" width="170" alt="{cell}">' for cell in cells)
        lines.append(f"| {shown_cells} | {figure} |")
        print(f"{name:<28} {figure}")
        if name == "hard_spotted_cats":
            support_view = shown(read_image(support_image), read_mask(support_mask))
            row([support_view, query, heat, found]).save(RESULTS / "teaser.png", optimize=True)
    page = EXAMPLES / "README.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
