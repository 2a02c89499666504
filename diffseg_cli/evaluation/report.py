"""An evaluation as a page to read: figures, published figures beside them, classes, and episodes in images.

One HTML file without anything outside it, and the plot of the classes as SVG of its own.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.evaluation.evaluate import Illustration
from diffseg_cli.evaluation.summary import EpisodeResult
from diffseg_cli.files import write_whole
from diffseg_cli.results.render import heatmap, jpeg_bytes, overlay, shrunk

REPORT, PLOT, RECORD = "report.html", "per_class.svg", "record.json"
COLORS = {
    "model": "#e0244f",
    "adapted": "#7d3fc4",
    "attention": "#e8a13a",
    "prototype": "#8a8f9c",
    "prototype-adapted": "#4a4f5c",
    "seggpt": "#3d78e0",
    "matcher-lite": "#27a077",
}
IMAGE_SIDE, QUALITY = 300, 85  # px of the longer side in the page; of the JPEG
Illustrations = Mapping[str, Sequence[tuple[EpisodeResult, Illustration]]]

STYLE = """
:root { color-scheme: light; --ink: #1c1d22; --faint: #6a6d78; --line: #e3e4ea; --ours: #fdf0f3; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff;
  max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 6px; } h2 { font-size: 18px; margin: 40px 0 10px; }
h3 { font-size: 15px; margin: 22px 0 8px; } p { margin: 6px 0; } .faint, caption { color: var(--faint); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--faint); } td.n, th.n { text-align: right; white-space: nowrap; }
tr.ours td { background: var(--ours); font-weight: 600; }
i.dot { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 8px; }
.episode { border-top: 1px solid var(--line); padding: 12px 0; }
.episode > div { display: grid; grid-template-columns: repeat(5, 1fr); gap: 10px; }
figure { margin: 0; } figcaption { font-size: 12px; color: var(--faint); }
img { width: 100%; height: 170px; object-fit: contain; background: #f4f4f7; display: block; }
svg { max-width: 100%; height: auto; }
pre { background: #f4f4f7; padding: 12px; overflow-x: auto; font-size: 12px; white-space: pre-wrap; }
"""


def write_report(out: Path, record: Mapping[str, Any], illustrations: Illustrations) -> None:
    """Write `report.html`, `per_class.svg` and `record.json`, each whole or not at all.

    Args:
        out: the folder.
        record: of `Benchmark.record`.
        illustrations: "best", "median" and "worst" episodes.

    Raises:
        InputError: the folder cannot be written.
    """
    plot = class_plot(_plotted(record))
    for name, text in (
        (PLOT, plot),
        (REPORT, render_report(record, illustrations)),
        (RECORD, json.dumps(record, indent=2) + "\n"),
    ):
        write_whole(out / name, text.encode())


def render_report(record: Mapping[str, Any], illustrations: Illustrations) -> str:
    """The page as text."""
    title = f"{record['model']} on {record['dataset']}, {record['shots']}-shot"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(record['protocol'])}</p>",
        f'<p class="faint">{_text(_what(record))}</p>',
        "<h2>Figures</h2>",
        _figures_table(record),
        *(f'<p class="faint">{_text(note)}</p>' for note in record["notes"]),
        _sweep_table(record),
        _published_table(record),
        "<h2>Classes</h2>",
        class_plot(_plotted(record)),
        "<h2>Episodes</h2>",
        *(_episodes(name, shown) for name, shown in illustrations.items() if shown),
        "<h2>To repeat it</h2>",
        f"<pre>{_text(json.dumps({k: v for k, v in record.items() if k not in _LONG}, indent=2))}</pre>",
    ]
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


_LONG = ("methods", "published", "costs", "notes", "sweep")


def _plotted(record: Mapping[str, Any]) -> dict[str, Any]:
    """The methods without the settings of a sweep that nobody should use."""
    sweep = record.get("sweep") or {"rows": [], "use": "model"}
    hidden = {row["method"] for row in sweep["rows"]} - {"model", sweep["use"]}
    return {name: figures for name, figures in record["methods"].items() if name not in hidden}


def _sweep_table(record: Mapping[str, Any]) -> str:
    if not record.get("sweep"):
        return ""
    use = record["sweep"]["use"]
    rows = ['<th class="n">mean IoU</th><th class="n">gain</th><th class="n">95 %</th><th>setting</th>']
    for row in record["sweep"]["rows"]:
        ends = "" if row["interval"] is None else "{:+.3f} to {:+.3f}".format(*row["interval"])
        cells = f'<td class="n">{row["mean_iou"]:.3f}</td><td class="n">{row["gain"]:+.3f}</td>'
        name = "as given" if row["method"] == "model" else row["method"]
        rows.append(
            f'{cells}<td class="n">{ends}</td><td>{_text(name)}{" (use)" * (row["method"] == use)}</td>'
        )
    return f"<h2>Settings</h2><table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _what(record: Mapping[str, Any]) -> str:
    folds = f", fold {', '.join(map(str, record['folds']))}" if record["folds"] else ""
    runs = f", mean of {record['runs']} runs" if record["runs"] > 1 else ""
    return (
        f"{record['episodes']} episodes of {record['classes']} classes{folds}{runs}, seed {record['seed']}, "
        f"episodes {record['episodes_sha256']}. {record['description']}."
    )


def _figures_table(record: Mapping[str, Any]) -> str:
    heads = ("method", "mean IoU", "95 %", "boundary IoU", "FB-IoU", "s / episode", "weights MiB", "GPU MiB")
    rows = ["".join(f'<th class="{"n" if i else ""}">{head}</th>' for i, head in enumerate(heads))]
    for method, figures in _plotted(record).items():
        sure = figures["intervals"]
        costs = record["costs"].get(method, {})
        cells = [
            f"{figures['mean_iou']['all']:.3f}",
            "{:.3f} to {:.3f}".format(*sure["mean_iou"]) if sure else "",
            f"{figures['boundary_iou']['all']:.3f}",
            f"{figures['fb_iou']:.3f}",
            _number(costs.get("seconds_per_episode"), ".2f"),
            _number(costs.get("weights_mib"), ".0f"),
            _number(costs.get("device_mib"), ".0f"),
        ]
        name = f'<td><i class="dot" style="background:{_color(method)}"></i>{_text(method)}</td>'
        rows.append(name + "".join(f'<td class="n">{cell}</td>' for cell in cells))
        groups = [(g, v) for g, v in figures["mean_iou"].items() if g != "all"]
        groups += [(f"fold {fold}", value) for fold, value in figures["per_fold"].items()]
        for group, value in groups if len(groups) > 1 else []:
            boundary = figures["boundary_iou"].get(group)
            rows.append(
                f'<td class="faint" style="padding-left:18px">{_text(group)}</td>'
                f'<td class="n">{value:.3f}</td><td></td><td class="n">{_number(boundary, ".3f")}</td>'
                "<td></td><td></td><td></td><td></td>"
            )
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _published_table(record: Mapping[str, Any]) -> str:
    if not record["published"]:
        return ""
    kinds = sorted({row["kind"] for row in record["published"]})
    tables = []
    for kind in kinds:
        rows = [(row["mean_iou"], row, "") for row in record["published"] if row["kind"] == kind]
        for method, figures in record["methods"].items():
            if record["kinds"][method] != kind:
                continue
            mine = {"method": f"{method} (this run)", "backbone": record["model"], "source": ""}
            rows.append((100.0 * figures["mean_iou"]["all"], mine, "ours"))
        rows.sort(key=lambda row: row[0])
        body = "".join(
            f'<tr class="{css}"><td class="n">{value:.1f}</td><td>{_text(row["method"])}</td>'
            f'<td>{_text(row["backbone"])}</td><td class="faint">{_text(row["source"])}</td></tr>'
            for value, row, css in rows
        )
        head = '<tr><th class="n">mIoU, %</th><th>method</th><th>backbone</th><th>read in</th></tr>'
        tables.append(f"<h3>Published, {_text(kind)}</h3><table>{head}{body}</table>")
    return f"<h2>Beside published figures of the same protocol</h2>{''.join(tables)}"


def class_plot(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """IoU of each class, best first, a mark a method, as SVG."""
    first = next(iter(methods.values()))["per_class"]
    names = sorted(first, key=lambda name: -first[name])
    row, left, width, top = 20.0, 190, 700, 44
    height = top + row * len(names) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 60}" height="{height}" '
        f'viewBox="0 0 {left + width + 60} {height}" font-family="system-ui, sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for index, method in enumerate(methods):
        x = left + 130 * index
        parts.append(f'<circle cx="{x + 5}" cy="10" r="5" fill="{_color(method)}"/>')
        parts.append(f'<text x="{x + 16}" y="14" fill="#1c1d22">{_text(method)}</text>')
    for tenth in range(0, 11, 2):
        at = left + width * tenth / 10
        parts.append(f'<line x1="{at}" y1="{top - 6}" x2="{at}" y2="{height - 4}" stroke="#e3e4ea"/>')
        parts.append(
            f'<text x="{at}" y="{top - 10}" fill="#6a6d78" text-anchor="middle">{tenth / 10:g}</text>'
        )
    for index, name in enumerate(names):
        y = top + row * index + row / 2
        value = first[name]
        parts.append(
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end" fill="#1c1d22">{_text(name)}</text>'
            f'<rect x="{left}" y="{y - 5}" width="{max(width * value, 1):.1f}" height="10" rx="2" '
            f'fill="{_color(next(iter(methods)))}"/>'
            f'<text x="{left + width + 12}" y="{y + 4}" fill="#6a6d78">{value:.2f}</text>'
        )
        for method, figures in list(methods.items())[1:]:
            x = left + width * figures["per_class"][name]
            parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{_color(method)}" stroke="#fff"/>')
    return "".join([*parts, "</svg>"])


def _episodes(name: str, shown: Sequence[tuple[EpisodeResult, Illustration]]) -> str:
    parts = [f"<h3>{_text(name.capitalize())}</h3>"]
    for result, illustration in shown:
        fold = "" if result.fold is None else f", fold {result.fold}"
        others = ", ".join(
            f"{m} {value:.2f}" for m, value in result.iou.items() if m != "model" and not m.startswith("--")
        )
        line = f"{result.class_name}: IoU {result.iou['model']:.2f}" + (f" ({others})" if others else "")
        image, mask = illustration.supports[0]
        more = f", 1 of {len(illustration.supports)}" if len(illustration.supports) > 1 else ""
        truth = overlay(illustration.query, illustration.truth.mask)
        truth[illustration.truth.ignore] = truth[illustration.truth.ignore] // 2 + 100
        tiles = (
            (f"support{more}", overlay(image, mask)),
            ("query", illustration.query),
            ("score map M_a", heatmap(illustration.score_map, illustration.query)),
            ("prediction", overlay(illustration.query, illustration.predicted)),
            ("truth", truth),
        )
        figures = "".join(
            f'<figure><img alt="{text}" src="{_embed(pixels)}"><figcaption>{text}</figcaption></figure>'
            for text, pixels in tiles
        )
        place = f"run {result.run}{fold}, episode {result.index}"
        parts.append(
            f'<div class="episode"><p>{_text(line)} <span class="faint">{place}</span></p>'
            f"<div>{figures}</div></div>"
        )
    return "".join(parts)


def _embed(pixels: NDArray[np.uint8]) -> str:
    """An image small enough for a page, as a data address."""
    content = jpeg_bytes(shrunk(pixels, IMAGE_SIDE), QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _color(method: str) -> str:
    return COLORS.get(method, "#5b5f6b")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _text(value: object) -> str:
    return html.escape(str(value))
