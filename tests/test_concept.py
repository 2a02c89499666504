"""Concepts: saved, shown, used instead of supports, refused with the reason; checked by leaving one out."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from diffseg_cli import assembly
from diffseg_cli.cli import main
from diffseg_cli.doctor import examine_file
from diffseg_cli.errors import DiffsegError, UsageError, WeightsError
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.supports.concept import (
    SupportSet,
    check_name,
    open_concept,
    source_of,
    write_concept,
)
from diffseg_cli.supports.support_check import check_supports
from diffseg_cli.weights.files import file_sha256, read_safetensors, write_safetensors

HW = (48, 64)


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main.app, [str(each) for each in arguments])


def picture(seed: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(HW[::-1], Image.Resampling.BICUBIC))


def box(top: int = 10) -> NDArray[np.bool_]:
    mask = np.zeros(HW, dtype=bool)
    mask[top : top + 25, 20:50] = True
    return mask


@pytest.fixture
def attention(small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    """What the command line gets when it loads a segmenter."""
    backbone, trained = small_segmenter.backbone, small_segmenter.trained
    answer = Segmenter(backbone=backbone, trained=trained, hed=None, head="attention")
    monkeypatch.setattr(assembly, "load_segmenter", lambda *_, **__: answer)
    return answer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b", "c", "scene")):
        Image.fromarray(picture(seed)).save(f"{name}.png")
        Image.fromarray(box(5 + 5 * seed)).save(f"{name}_m.png")
    return tmp_path


def make(segmenter: Segmenter, name: str, *stems: str) -> Path:
    pairs = [
        (np.asarray(Image.open(f"{stem}.png")), np.asarray(Image.open(f"{stem}_m.png"))) for stem in stems
    ]
    sources = [source_of(Path(f"{stem}.png"), Path(f"{stem}_m.png")) for stem in stems]
    write_concept(Path(f"{name}.dsc"), segmenter, SupportSet(name, pairs, sources))
    return Path(f"{name}.dsc")


# --- the file ------------------------------------------------------------------------------------------


def test_a_concept_answers_like_its_supports(small_segmenter: Segmenter) -> None:
    saved = open_concept(make(small_segmenter, "dog", "a", "b"))
    support = saved.concept(small_segmenter).support
    fresh = small_segmenter.encode_support([("a.png", "a_m.png"), ("b.png", "b_m.png")])
    for what in ("latents", "masks", "image_embeds"):
        assert torch.equal(getattr(support, what), getattr(fresh, what))
    once, again = (small_segmenter.segment("scene.png", each) for each in (support, fresh))
    np.testing.assert_array_equal(once.probability, again.probability)
    assert saved.name == "dog" and saved.settings == {"image_size": 128, "dtype": "float32"}
    assert [source.image for source in saved.sources] == ["a.png", "b.png"]
    assert saved.sources[0].mask_sha256 == file_sha256(Path("a_m.png"))
    (image, mask), _ = saved.thumbnails()
    np.testing.assert_array_equal(mask, box(5))
    assert np.abs(image.astype(int) - picture(0)).mean() < 6  # a JPEG


def test_writing_twice_gives_the_same_bytes_and_no_other_file(small_segmenter: Segmenter) -> None:
    before = set(Path().iterdir())
    first = make(small_segmenter, "dog", "a").read_bytes()
    assert make(small_segmenter, "dog", "a").read_bytes() == first
    assert set(Path().iterdir()) - before == {Path("dog.dsc")}
    assert b"pickle" not in first


def test_large_pictures_become_small_thumbnails(small_segmenter: Segmenter) -> None:
    image = np.zeros((900, 1200, 3), np.uint8)
    mask = np.zeros((900, 1200), bool)
    mask[300:600, 400:800] = True
    source = source_of(Path("a.png"), Path("a_m.png"))
    saved = write_concept(Path("big.dsc"), small_segmenter, SupportSet("big", [(image, mask)], [source]))
    ((small, covered),) = saved.thumbnails()
    assert small.shape == (288, 384, 3) and covered.mean() == pytest.approx(mask.mean(), rel=0.02)


def changed(path: Path, *, drop: str = "", tensors: bool = True, **metadata: str) -> None:
    """Write the concept again with other metadata, and without one tensor."""
    held, known = read_safetensors(path)
    kept = {name: tensor for name, tensor in held.items() if name != drop} if tensors else {}
    write_safetensors(path, kept, {**known, **metadata})


@pytest.mark.parametrize(
    ("change", "said", "advice"),
    [
        ({"fingerprint": "older"}, r"dog.dsc is stale: .*\(older\).*\(small\)", "concept make"),
        (
            {"backbone": "kandinsky-2-2"},
            "was made with kandinsky-2-2, and the model in use is compact",
            "--model",
        ),
        ({"format": "diffseg-checkpoint"}, "dog.dsc is not a concept", "concept make"),
        ({"format_version": "3"}, "has concept format 3; this diffseg reads 1 and 2", "Update"),
        ({"format_version": "2"}, "dog.dsc is damaged", "again"),
        ({"sources": "[]"}, "dog.dsc is damaged", "again"),
        ({"sources": '[{"image": 3}]'}, "dog.dsc is damaged", "again"),
        ({"sources": "[" * 100000}, "dog.dsc is damaged", "again"),
        ({"settings": "not JSON"}, "dog.dsc is damaged", "again"),
        ({"name": "../../etc/passwd"}, "dog.dsc is damaged", "again"),
        ({"drop": "latents"}, "dog.dsc is damaged", "again"),
        ({"drop": "thumbnail.0"}, "dog.dsc is damaged", "again"),
    ],
)
def test_what_does_not_fit_is_refused(
    small_segmenter: Segmenter, change: dict[str, str], said: str, advice: str
) -> None:
    path = make(small_segmenter, "dog", "a")
    changed(path, **change)  # type: ignore[arg-type]
    with pytest.raises(WeightsError) as raised:
        open_concept(path).concept(small_segmenter)
    assert re.search(said, raised.value.message) and advice in str(raised.value.hint)


def test_features_that_are_no_numbers_or_of_another_grid_are_refused(small_segmenter: Segmenter) -> None:
    """Under the right digest too: whoever wrote the file may have computed them so."""
    path = make(small_segmenter, "dog", "a")
    held, known = read_safetensors(path)
    assert known["digest"] == digest_of(held)
    write_safetensors(path, {**held, "image_embeds": held["image_embeds"] + 1}, known)
    with pytest.raises(WeightsError, match="damaged"):  # of one changed tensor
        open_concept(path).concept(small_segmenter)
    for what, value in (("latents", torch.nan), ("masks", torch.nan), ("image_embeds", torch.inf)):
        broken = held[what].clone()
        broken.view(-1)[0] = value
        refuse_with_its_digest(path, small_segmenter, {**held, what: broken})
    for tensors in (
        {"latents": held["latents"].to(torch.int32)},
        {"latents": held["latents"][:, :5]},
        {"latents": held["latents"][..., :4, :4], "masks": held["masks"][..., :4, :4]},
    ):
        refuse_with_its_digest(path, small_segmenter, {**held, **tensors})


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
    """As the module's docstring says of `digest`: of the encoded supports, in this order."""
    raw = [tensors[what].contiguous() for what in ("latents", "masks", "image_embeds")]
    return hashlib.sha256(b"".join(each.numpy().tobytes() for each in raw)).hexdigest()


def refuse_with_its_digest(path: Path, segmenter: Segmenter, tensors: dict[str, torch.Tensor]) -> None:
    known = read_safetensors(path)[1]
    write_safetensors(path, tensors, {**known, "digest": digest_of(tensors)})
    with pytest.raises(WeightsError, match="damaged"):
        open_concept(path).concept(segmenter)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damaged_bytes_never_crash(small_segmenter: Segmenter, data: st.DataObject) -> None:
    path = make(small_segmenter, "dog", "a")
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    end = data.draw(st.sampled_from([header, len(content)]))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    hurt = Path("hurt.dsc")
    hurt.write_bytes(content[: data.draw(st.sampled_from([len(content), header, header + 1000]))])
    try:
        open_concept(hurt).concept(small_segmenter)
    except DiffsegError as error:
        assert "hurt.dsc" in error.message


@pytest.mark.parametrize("name", ["dog", "bad weld 2", "Käfer", "a.b-c_d+e", "日本"])
def test_names_that_are_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".dog", "..", "a/b", "a\\b", "a:b", "dog ", "dog.", "a\nb", "x" * 65, "nul", "COM1", "con.x"]
)
def test_names_that_could_not_be_part_of_a_file_name(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        check_name(name)


# --- the verbs -----------------------------------------------------------------------------------------


def test_make_and_show(attention: Segmenter) -> None:
    two = ("-s", "a.png", "-m", "a_m.png", "-s", "b.png", "-m", "b_m.png")
    result = run("concept", "make", "out/dog.dsc", *two, "--name", "brown dog")
    assert (result.exit_code, result.stdout) == (0, "out/dog.dsc\n"), result.output
    assert open_concept(Path("out/dog.dsc")).concept(attention).name == "brown dog"
    shown = run("concept", "show", "out/dog.dsc", "--sheet", "sheet.png")
    lines = shown.stdout.splitlines()
    assert shown.exit_code == 0 and lines[-1] == "sheet.png" and Image.open("sheet.png").width > 500
    assert "  name      brown dog" in lines and sum("support   " in line for line in lines) == 2
    row = json.loads(run("concept", "show", "out/dog.dsc", "--json").stdout)
    assert row["sources"][1]["image"] == "b.png" and row["backbone"] == "compact"


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("concept make a.png -s a.png -m a_m.png", 2, "would be overwritten"),
        ("concept make a_m.png -s a.png -m a_m.png", 2, "would overwrite a support"),
        ("concept make .x.dsc -s a.png -m a_m.png", 2, "cannot be the name of a concept"),
        (
            "concept make dog.dsc -s a.png -m a_m.png -s b.png",
            2,
            "--support is given 2 times and --mask once",
        ),
        ("concept make a.png/dog.dsc -s a.png -m a_m.png", 3, "cannot be written"),
        ("concept make dog.dsc -s none.png -m a_m.png", 3, "none.png does not exist"),
        ("concept show none.dsc", 4, "none.dsc cannot be read"),
        ("concept show a.png", 4, "a.png is damaged or is not a safetensors file"),
        ("concept show one.dsc --sheet one.dsc", 2, "would be overwritten"),
        ("concept check one.dsc", 2, "holds 1 supports; leaving one out takes three"),
        ("segment -q scene.png", 2, "Nothing to look for is given"),
        ("segment -q scene.png -c one.dsc -s a.png -m a_m.png", 2, "both are given"),
        ("segment -q scene.png -c one.dsc -c copy.dsc", 2, "one.dsc and copy.dsc are both called one"),
        ("segment -q scene.png -c one.dsc --name cat", 2, "A concept has its own name"),
        ("segment -q scene.png -c one.dsc --label 3", 2, "holds its masks already"),
        ("segment -q scene.png -c a.png", 4, "a.png is damaged"),
        ("segment -q scene.png -c one.dsc -f svg", 2, "'svg' is not one of"),
        ("segment -q scene.png -c one.dsc --matting", 2, "--matting is for cut-outs"),
        ("segment -q scene.png -c one.dsc -f coco -o -", 2, "--out - writes the mask alone"),
        ("segment -q scene.png -s a.png -m a_m.png --name a/b", 2, "cannot be the name"),
        ("segment -q scene.png -c stale.dsc", 4, "stale.dsc is stale"),
    ],
)
def test_refusals_name_the_file_and_write_nothing(
    attention: Segmenter, arguments: str, code: int, said: str
) -> None:
    shutil.copy(make(attention, "one", "a"), "copy.dsc")
    shutil.copy("one.dsc", "stale.dsc")
    changed(Path("stale.dsc"), fingerprint="older")
    before = {path: path.read_bytes() for path in Path().iterdir()}
    result = run(*arguments.split())
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert said in result.stderr and "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_two_concepts_give_one_label_map_and_the_query_is_encoded_once(
    attention: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, stem in (("dog", "a"), ("sofa", "b")):
        make(attention, name, stem)
    encoded = []
    encode = Segmenter.encode_queries
    monkeypatch.setattr(Segmenter, "encode_queries", lambda s, q: encoded.append(len(q)) or encode(s, q))
    formats = ("-f", "mask", "-f", "coco", "-f", "json", "-f", "voc", "-f", "heatmap")
    result = run("segment", "-c", "dog.dsc", "-c", "sofa.dsc", "-q", "scene.png", *formats, "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert encoded == [1]
    assert [(found["name"], found["label"]) for found in row["concepts"]] == [("dog", 1), ("sofa", 2)]
    with Image.open(row["outputs"]["mask"]) as read:
        labels = np.asarray(read)
        assert read.mode == "P" and labels.shape == HW and set(np.unique(labels)) <= {0, 1, 2}
    np.testing.assert_array_equal(np.asarray(Image.open(row["outputs"]["voc"])), labels)
    supports = [open_concept(Path(f"{name}.dsc")).concept(attention).support for name in ("dog", "sofa")]
    alone = [attention.segment("scene.png", support) for support in supports]
    both = alone[0].mask & alone[1].mask
    assert both.any()
    stronger = np.where(alone[0].probability >= alone[1].probability, 1, 2)
    assert (labels[both] == stronger[both])[labels[both] > 0].all()
    for label, found in enumerate(row["concepts"], start=1):
        assert found["mask_area"] == pytest.approx((labels == label).mean())
    record = json.loads(Path("diffseg_out/run.json").read_text())
    assert [each["concept"] for each in record["concepts"]] == ["dog.dsc", "sofa.dsc"]
    assert record["concepts"][0]["supports"][0]["image"] == "a.png"
    (kept,) = record["images"]
    assert kept == {**row, "key": "scene.png", "image": kept["image"]} and record["refine"] is True


def test_formats_of_several_queries(attention: Segmenter) -> None:
    make(attention, "dog", "a")
    formats = ("-f", "yolo", "-f", "coco", "-f", "coco", "-f", "sheet")
    result = run("segment", "-c", "dog.dsc", "-q", "scene.png", "-q", "b.png", *formats, "-o", "out")
    assert result.exit_code == 0, result.output
    names = ["labels/scene.txt", "scene_sheet.png", "labels/b.txt", "b_sheet.png", "data.yaml", "coco.json"]
    assert sorted(result.stdout.splitlines()) == sorted(f"out/{name}" for name in names)
    written = [path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()]
    assert sorted(written) == sorted(names)
    record = json.loads(Path("out/coco.json").read_text())
    assert [image["file_name"] for image in record["images"]] == ["scene.png", "b.png"]


def test_attn_takes_a_concept(attention: Segmenter) -> None:
    make(attention, "dog", "a")
    result = run("attn", "-c", "dog.dsc", "-q", "scene.png", "-o", "maps")
    assert result.exit_code == 0, result.output
    assert run("attn", "-s", "a.png", "-m", "a_m.png", "-q", "scene.png", "-o", "again").exit_code == 0
    first, second = (np.load(f"{where}/scene_attn.npz") for where in ("maps", "again"))
    for name in first.files:
        if first[name].dtype.kind == "f":
            np.testing.assert_array_equal(first[name], second[name])


# --- check of supports ---------------------------------------------------------------------------------


def test_check_leaves_each_support_out(attention: Segmenter) -> None:
    make(attention, "dog", "a", "b", "c")
    result = run("concept", "check", "dog.dsc", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["supports"]
    assert [row["support"] for row in rows] == ["a.png", "b.png", "c.png"]
    for row in rows:
        assert 0 <= row["found"] <= 1 and -1 <= row["gain"] <= 1
        assert row["verdict"] in ("helps", "hurts", "neutral")
    printed = run("concept", "check", "dog.dsc").stdout.splitlines()
    assert len(printed) == 5 and printed[0].split() == ["support", "found", "alone", "gain", "verdict"]


def test_choose_supports_is_encoding_fewer(small_segmenter: Segmenter) -> None:
    pairs = [(f"{stem}.png", f"{stem}_m.png") for stem in "abc"]
    every = small_segmenter.encode_support(pairs)
    chosen = every.choose([2, 0])
    fresh = small_segmenter.encode_support([pairs[2], pairs[0]])
    torch.testing.assert_close(chosen.latents, fresh.latents)
    torch.testing.assert_close(chosen.image_embeds, fresh.image_embeds)
    with pytest.raises(ValueError, match="cannot be left out"):
        check_supports(small_segmenter, chosen, [])


def test_doctor_knows_concepts_and_what_is_wrong_with_them(small_segmenter: Segmenter) -> None:
    path = make(small_segmenter, "dog", "a", "b")
    good = examine_file(path)
    assert good.status == "ok" and "concept 'dog' of 2 supports, made with compact small" in good.what
    changed(path, sources="not JSON")
    bad = examine_file(path)
    assert bad.status == "bad" and "damaged" in bad.what
