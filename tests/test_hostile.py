"""Files that are broken or mean harm: a sentence and an exit code, little memory, no file elsewhere."""

import base64
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save
from typer.testing import CliRunner

from diffseg_cli import assembly
from diffseg_cli.cli import main
from diffseg_cli.doctor import examine_file
from diffseg_cli.errors import DiffsegError
from diffseg_cli.reading.annotated import Target
from diffseg_cli.reading.image_io import read_image, read_mask
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.reading.notes import collected_notes
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.weights.files import read_header

HW = (20, 28)
REPOSITORY = Path(__file__).parents[1]
GIGABYTES = 2**30


def _picture(suffix: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, suffix, **options)
    return stream.getvalue()


def _mask(suffix: str, mode: str = "L") -> bytes:
    values = np.zeros(HW, dtype=np.uint8)
    values[4:12, 6:20] = 255
    stream = io.BytesIO()
    Image.fromarray(values).convert(mode).save(stream, suffix)
    return stream.getvalue()


def _arrays(write: Callable[..., None]) -> bytes:
    stream = io.BytesIO()
    write(stream, np.eye(20, 28, dtype=np.float32))
    return stream.getvalue()


STAMP = base64.b64encode(_mask("PNG", "1")).decode()
COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "../../a.png", "height": HW[0], "width": HW[1]}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "/etc/passwd"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": [[2, 2, 20, 3, 9, 17]]},
        {
            "id": 2,
            "image_id": 7,
            "category_id": 1,
            "segmentation": {"size": list(HW), "counts": [90, 50, 420]},
        },
        {"id": 3, "image_id": 7, "category_id": 1, "segmentation": {"size": list(HW), "counts": "R2b1Y="}},
        {"id": 4, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4]},
    ],
}
LABELME: dict[str, Any] = {
    "imagePath": "..\\CON.png",
    "imageHeight": HW[0],
    "imageWidth": HW[1],
    "imageData": None,
    "shapes": [
        {"label": "dog", "shape_type": "polygon", "points": [[1, 1], [20, 4], [9, 15]]},
        {"label": "dog", "shape_type": "rectangle", "points": [[3, 3], [9, 9]]},
        {"label": "dog", "shape_type": "circle", "points": [[9, 9], [9, 12]]},
        {"label": "dog", "shape_type": "mask", "points": [[0, 0], [27, 19]], "mask": STAMP},
    ],
}
RING = {"name": "polygon", "all_points_x": [1, 20, 9], "all_points_y": [1, 4, 15]}
VIA = {
    "a": {"filename": "a.png", "regions": [{"shape_attributes": RING, "region_attributes": {"class": "dog"}}]}
}
VIA["a"]["regions"].append(
    {"shape_attributes": {"name": "ellipse", "cx": 9, "cy": 9, "rx": 4, "ry": 2, "theta": 0.4}}
)
REGION: dict[str, Any] = {
    **{"id": "x1", "type": "polygonlabels", "original_width": HW[1], "original_height": HW[0]},
    "value": {"points": [[5, 5], [80, 20], [30, 70]], "polygonlabels": ["dog"]},
}
LABEL_STUDIO = [{"id": 1, "data": {"image": "/data/a.png"}, "annotations": [{"result": [REGION]}]}]
CVAT = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><image id="0" name="a.png" width="{HW[1]}" height="{HW[0]}">
<polygon label="dog" points="1,1;20,4;9,15"/>
<mask label="dog" rle="0, 3, 2, 5" left="3" top="4" width="5" height="2"/>
<ellipse label="dog" cx="9" cy="9" rx="4" ry="2" rotation="30"/></image></annotations>"""
SEEDS: dict[str, bytes] = {
    "a.png": _picture("PNG"),
    "palette.png": _picture("PNG", "P"),
    "alpha.png": _picture("PNG", "RGBA"),
    "deep.png": _picture("PNG", "I;16"),
    "mask.png": _mask("PNG"),
    "bits.png": _mask("PNG", "1"),
    "a.jpg": _picture("JPEG"),
    "a.tif": _picture("TIFF"),
    "lzw.tif": _picture("TIFF", compression="tiff_lzw"),
    "float.tif": _picture("TIFF", "F"),
    "a.webp": _picture("WEBP"),
    "a.gif": _picture("GIF"),
    "a.bmp": _picture("BMP"),
    "a.npy": _arrays(np.save),
    "a.npz": _arrays(np.savez),
    "packed.npz": _arrays(np.savez_compressed),
    "coco.json": json.dumps(COCO).encode(),
    "labelme.json": json.dumps(LABELME).encode(),
    "via.json": json.dumps(VIA).encode(),
    "label_studio.json": json.dumps(LABEL_STUDIO).encode(),
    "sa_1b.json": json.dumps({"image": COCO["images"][0], "annotations": COCO["annotations"][1:2]}).encode(),
    "cvat.xml": CVAT.encode(),
    "yolo.txt": b"0 0.1 0.1 0.5 0.1 0.5 0.5\n2 0.2 0.2 0.9 0.2 0.9 0.9 0.3 0.8\n",
    "a.safetensors": save({"x": np.zeros((2, 3), np.float32)}, {"format": "diffseg-checkpoint"}),
}
NASTY = (
    *(None, True, -1, 0, 0.5, 2**31, 10**30, -(10**18), float("nan"), float("inf"), 1e308, "", "x" * 5000),
    *(
        "../../up",
        "/abs",
        "CON",
        "\x00\x1b[2J",
        "\ud800",
        [],
        {},
        [[]],
        [1, 2],
        [[1, 2, 3]],
        {"size": [9, 9]},
    ),
)
TARGETS = (Target(), Target("somewhere/a.png", HW), Target("a.png", (3, 9000)))


def _mutate(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, insert or overwrite a few bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            del changed[place : place + rng.choice((1, 4, 50))]
        elif kind == 2:
            changed[place:place] = changed[rng.randrange(len(changed) + 1) :][: rng.choice((1, 8, 200))]
        elif kind == 3:
            changed[place : place + 4] = rng.choice(
                (b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\x80\0\0\0")
            )
        elif place < len(changed):
            changed[place] = rng.randrange(256) if kind == 4 else changed[place] ^ 1 << rng.randrange(8)
    return bytes(changed)


def _spoil(value: Any, rng: random.Random) -> Any:
    """Replace, drop or repeat something somewhere in a document."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(NASTY)
    if isinstance(value, dict):
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {other: each for other, each in value.items() if other != key}
        return value | {key: _spoil(value[key], rng)}
    place = rng.randrange(len(value))
    if rng.random() < 0.1:
        return value * rng.choice((0, 2, 300))
    return [*value[:place], _spoil(value[place], rng), *value[place + 1 :]]


def _hostile(name: str, seed: int) -> bytes:
    rng = random.Random(seed)
    if name.endswith(".json") and rng.random() < 0.8:
        document = json.loads(SEEDS[name])
        for _ in range(rng.choice((1, 2, 5))):
            document = _spoil(document, rng)
        return json.dumps(document).encode()
    return _mutate(SEEDS[name], rng)


def _try_every_door(path: Path, seed: int) -> None:
    """Whatever reads a user's file either answers or raises our own error, fit to be shown."""
    rng = random.Random(seed)
    choice = rng.choice(({}, {"category": "dog"}, {"annotation": 2}, {"label": 1}, {"invert": True}))
    doors: tuple[Callable[[], Any], ...] = (
        lambda: read_mask(path, target=rng.choice(TARGETS), **choice),
        lambda: read_image(path),
        lambda: read_header(path),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for door in doors:
            try:
                door()
            except DiffsegError as error:
                assert str(path) in error.message and len(error.message) < 2000
                assert error.message.count("\n") == 0 and error.hint
        finding = examine_file(path)
        assert finding.what and "\n" not in finding.what


def _fuzz(folder: Path, name: str, seed: int) -> None:
    path = folder / name
    path.write_bytes(_hostile(name, seed))
    _try_every_door(path, seed)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


CASES = st.tuples(st.sampled_from(sorted(SEEDS)), st.integers(0, 2**32))
QUIET = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)


@settings(max_examples=300, deadline=None, suppress_health_check=QUIET, database=None)
@given(CASES)
def test_hostile_files_end_in_a_sentence(tmp_path: Path, case: tuple[str, int]) -> None:
    before = _peak()
    _fuzz(tmp_path, *case)
    assert _peak() < max(before, 2 * GIGABYTES)
    assert [path.name for path in tmp_path.iterdir() if path.name not in SEEDS] == []


@pytest.mark.nightly
@settings(max_examples=5000, deadline=None, suppress_health_check=QUIET, database=None)
@given(CASES)
def test_many_hostile_files_end_in_a_sentence(tmp_path: Path, case: tuple[str, int]) -> None:
    before = _peak()
    _fuzz(tmp_path, *case)
    assert _peak() < max(before, 2 * GIGABYTES)


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_the_files_that_are_spoiled_are_read_when_whole(tmp_path: Path, name: str) -> None:
    """Else the tests above would look at one refusal only."""
    path = tmp_path / name
    path.write_bytes(SEEDS[name])
    assert examine_file(path).status != "bad"


def _read_or_refused(source: Path | InputFile) -> Any:
    with collected_notes() as notes:
        try:
            return read_mask(source, target=TARGETS[1]).tolist(), notes
        except DiffsegError as error:
            return error.message, error.hint


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("name", sorted(SEEDS))
def test_a_file_and_its_bytes_read_alike(tmp_path: Path, name: str, seed: int | None) -> None:
    """An upload is answered as a file is, and whole or spoiled, no other file is made for it."""
    path = tmp_path / name
    path.write_bytes(SEEDS[name] if seed is None else _hostile(name, seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        from_bytes = _read_or_refused(InputFile(str(path), path.read_bytes(), str(path)))
    assert from_bytes == _read_or_refused(path)


# --- the whole way -------------------------------------------------------------------------------------


def test_names_inside_files_lead_nowhere(
    small_segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Segmenter(
        backbone=small_segmenter.backbone, trained=small_segmenter.trained, hed=None, head="attention"
    )
    monkeypatch.setattr(assembly, "load_segmenter", lambda *_, **__: answer)
    inner = tmp_path / "deep" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    Path("a.png").write_bytes(SEEDS["a.png"])
    Path("CON.png").write_bytes(SEEDS["a.png"])
    labels = ["../../up", "/abs", "CON", "a/b", "..", "\x00"]
    for label in labels:
        document = LABELME | {"shapes": [LABELME["shapes"][1] | {"label": label}]}
        Path("m.json").write_text(json.dumps(document | {"imagePath": label}))
        arguments = ["segment", "-s", "a.png", "-m", "m.json", "-q", "CON.png", "--out", "out"]
        result = CliRunner().invoke(main.app, arguments)
        assert result.exit_code == 0, result.output
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    elsewhere = {name for name in written if not name.startswith("deep/inner/out/CON_")}
    assert elsewhere == {"deep/inner/a.png", "deep/inner/CON.png", "deep/inner/m.json"}
    for query in ("..", ".", "/"):
        result = CliRunner().invoke(main.app, ["edges", query, "--out", "out"])
        assert result.exit_code == 3 and "is a folder" in result.stderr


MEASURE = """
import resource, sys, warnings
from pathlib import Path
from diffseg_cli.errors import DiffsegError
from diffseg_cli.reading.image_io import read_image, read_mask
from diffseg_cli.reading.annotated import Target
warnings.simplefilter("ignore")
path = Path(sys.argv[1])
for door in (read_mask, read_image):
    try:
        door(path)
    except DiffsegError as error:
        print(error.message[:200])
# ru_maxrss starts at the parent's; the high-water mark of /proc is this program's own.
status = Path("/proc/self/status")
words = status.read_text().split() if status.exists() else []
peak = int(words[words.index("VmHWM:") + 1]) if words else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak * 1024)
"""


def _peak_of(path: Path) -> tuple[int, str]:
    """Memory a fresh process takes to read a file both ways, and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said, _, peak = done.stdout.rstrip().rpartition("\n")
    return int(peak), said


def test_sizes_that_are_only_claimed_reserve_nothing(tmp_path: Path) -> None:
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (5000, 6000)}"
    claims = {
        "claim.npy": b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode() + b"none",
        "counts.json": json.dumps({"size": [10_000, 10_000], "counts": [1] * 1000}).encode(),
        "brackets.json": b'{"shapes": [' + b"[]," * 2_000_000 + b"[]]}",
        "more brackets.json": b'{"shapes": [' + b"[]," * 20_000_000 + b"[]]}",
        "attributes.xml": b"<annotations><image " + b'a="" ' * 10_000_000 + b"/></annotations>",
        "numbers.txt": b"0 " * 30_000_000,
    }
    for name, content in claims.items():
        (tmp_path / name).write_bytes(content)
        peak, said = _peak_of(tmp_path / name)
        assert peak < 0.5 * GIGABYTES and name in said


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "I;16", "I", "F"])
def test_the_largest_pictures_stay_below_two_gigabytes(tmp_path: Path, mode: str) -> None:
    """Noise of 100 megapixels, the worst to tell apart."""
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (1000, 1000, 4), dtype=np.uint8)
    if mode in ("I", "F", "I;16"):
        kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        image = Image.fromarray(rng.integers(0, 60_000, (10_000, 10_000)).astype(kind))
    else:
        image = Image.fromarray(np.tile(tile, (10, 10, 1))).convert(mode)
    path = tmp_path / ("large.tif" if mode in ("I", "F") else "large.png")
    image.save(path, **({"compress_level": 1} if path.suffix == ".png" else {}))
    del image
    peak, _ = _peak_of(path)
    assert peak < 2 * GIGABYTES
