"""The report: a page that needs nothing outside it, with pictures of what was measured."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffseg_cli.datasets.truth import Truth
from diffseg_cli.evaluation.evaluate import Illustration
from diffseg_cli.evaluation.report import PLOT, RECORD, REPORT, class_plot, render_report, write_report
from diffseg_cli.evaluation.summary import EpisodeResult, summarise

RESULTS = [
    EpisodeResult(
        0, 0, i, name, {"model": (40 + i, 90, 5, 60, 9, 30), "prototype": (20 + i, 90, 5, 60, 3, 30)}
    )
    for i, name in enumerate(["cat", "dog <b>", "cat", "dog <b>"])
]


def record() -> dict[str, object]:
    return {
        **{"model": "compact", "dataset": "pascal-5i", "shots": 1, "protocol": "PASCAL-5i: five classes"},
        **{"episodes": 4, "classes": 2, "folds": [0], "runs": 1, "seed": 3, "episodes_sha256": "abc"},
        "description": "the compact model (a small stand-in, not a diffusion model) on cpu",
        "methods": summarise(RESULTS),
        "costs": {"model": {"seconds_per_episode": 0.25, "weights_mib": 70.0, "device_mib": None}},
        "kinds": {"model": "trained", "prototype": "training-free"},
        "notes": ["A note & more."],
        "published": [
            {"mean_iou": value, "method": name, "backbone": "b", "kind": kind, "source": "s"}
            for value, name, kind in ((69.3, "Paper", "trained"), (43.1, "Frozen", "training-free"))
        ],
    }


def illustration() -> Illustration:
    image = np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8)
    mask = np.zeros((400, 600), bool)
    mask[100:200, 100:300] = True
    supports = [(image[:90, :80], mask[:90, :80])]
    return Illustration(supports, image, Truth(mask, ~mask), mask.astype(np.float32), mask)


def test_the_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    pictures = {"best": [(RESULTS[3], illustration())], "median": [], "worst": [(RESULTS[1], illustration())]}
    write_report(tmp_path, record(), pictures)
    page = (tmp_path / REPORT).read_text()
    assert "<h3>Best</h3>" in page and "<h3>Worst</h3>" in page and "<h3>Median</h3>" not in page
    assert "dog &lt;b&gt;: IoU 0.48" in page and "<b>" not in page and "A note &amp; more." in page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(addresses) == 10 and all(a.startswith("data:image/jpeg;base64,") for a in addresses)
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).size for address in addresses[:5]
    ]
    assert sizes[0] == (80, 90) and set(sizes[1:]) == {(300, 200)}
    assert json.loads((tmp_path / RECORD).read_text())["episodes"] == 4
    assert (tmp_path / PLOT).read_text() in page


def test_figures_stand_among_the_published_of_their_kind() -> None:
    page = render_report(record(), {})
    trained, free = page.split("Published, training-free")
    rows = re.findall(r'<td class="n">([\d.]+)</td><td>([^<]+)</td>', trained.split("Published, trained")[1])
    assert rows == [("46.1", "model (this run)"), ("69.3", "Paper")]
    assert "prototype (this run)" in free and "model (this run)" not in free
    assert "Frozen" in free and "Paper" not in free
    without = render_report({**record(), "published": []}, {})
    assert "published figures" not in without


def test_the_plot_shows_every_class_best_first() -> None:
    methods = summarise(RESULTS)
    root = ElementTree.fromstring(class_plot(methods))
    name = "{http://www.w3.org/2000/svg}"
    labels = [text.text for text in root.iter(f"{name}text") if text.get("text-anchor") == "end"]
    assert labels == ["dog <b>", "cat"]
    bars = [bar.attrib["width"] for bar in root.iter(f"{name}rect") if bar.get("width") != "100%"]
    shares = [700 * methods["model"]["per_class"][name] for name in ("dog <b>", "cat")]
    assert [float(bar) for bar in bars] == pytest.approx(shares, abs=0.1)
