"""Weight files: found in order, checked against the manifest, never opened as code, refused with a reason."""

import hashlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from diffseg_cli.errors import ExitCode, InputError, WeightsError
from diffseg_cli.weights import files as weights
from diffseg_cli.weights.checkpoint import (
    CheckpointInfo,
    read_checkpoint,
    read_checkpoint_info,
    write_checkpoint,
)
from diffseg_cli.weights.files import WeightsEntry

REPOSITORY = Path(__file__).parents[1]
TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)}
INFO = CheckpointInfo("compact", "ab12", {"width": 64}, {"seed": 0}, {"miou": 0.5})


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    weights.write_safetensors(path, TENSORS, {"source": "here", "licence": "MIT"})
    return path


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The four places looked in, all on this test's ground, each with a file of its own name in x/."""
    package = tmp_path / "clone" / "diffseg_cli"
    folders = {
        "flag": tmp_path / "flag",
        "package": package / "_weights",
        "clone": tmp_path / "clone" / "weights",
        "cwd": tmp_path / "work" / "weights",
    }
    for name, folder in folders.items():
        (folder / "x").mkdir(parents=True)
        (folder / "x" / "everywhere.safetensors").write_text(name)
    (tmp_path / "clone" / "pyproject.toml").write_text("")
    monkeypatch.setattr(weights, "__file__", str(package / "weights" / "files.py"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("DIFFSEG_WEIGHTS", str(folders["flag"]))
    return folders


# --- where weights are


def test_first_place_that_has_the_file_wins(roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights.weights_roots() == list(roots.values())
    for name, folder in roots.items():
        found = weights.find_weights("x/everywhere.safetensors")
        assert found.read_text() == name
        (folder / "x" / "everywhere.safetensors").unlink()
    monkeypatch.delenv("DIFFSEG_WEIGHTS")
    with pytest.raises(WeightsError) as caught:
        weights.find_weights("x/everywhere.safetensors")
    assert all(str(roots[name]) in caught.value.message for name in ("package", "clone", "cwd"))
    assert str(roots["flag"]) not in caught.value.message
    assert "DIFFSEG_WEIGHTS" in (caught.value.hint or "")
    assert caught.value.exit_code == ExitCode.WEIGHTS


def test_a_neighbour_of_an_installed_package_is_not_searched(roots: dict[str, Path]) -> None:
    """Without a pyproject.toml the folder above is site-packages, where `weights` is somebody else's."""
    (roots["clone"].parent / "pyproject.toml").unlink()
    assert roots["clone"] not in weights.weights_roots()


def test_environment_naming_no_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSEG_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match=r"DIFFSEG_WEIGHTS names .*nowhere"):
        weights.find_weights("hed/hed_bsds500.safetensors")


def test_weights_of_this_clone_are_found_and_match_their_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFSEG_WEIGHTS", raising=False)
    statuses = {item.entry.file: item.status for item in weights.survey()}
    assert statuses and set(statuses.values()) == {"ok"}
    for name in statuses:
        assert weights.find_weights(name).is_file()


# --- safetensors


def test_written_file_reads_back_and_has_the_same_bytes_again(small_file: Path, tmp_path: Path) -> None:
    tensors, metadata = weights.read_safetensors(small_file)
    assert metadata == {"source": "here", "licence": "MIT"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert weights.read_header(small_file) == ({"a.weight": (2, 3), "b": (2,)}, metadata)
    for attempt in range(5):
        weights.write_safetensors(tmp_path / f"{attempt}", TENSORS, {"source": "here", "licence": "MIT"})
        assert (tmp_path / f"{attempt}").read_bytes() == small_file.read_bytes()


@pytest.mark.parametrize("length", range(8))
def test_tensors_begin_at_a_multiple_of_eight_bytes(tmp_path: Path, length: int) -> None:
    """So that they can be mapped into memory as they lie in the file."""
    weights.write_safetensors(tmp_path / "a", TENSORS, {"source": "x" * length})
    assert int.from_bytes((tmp_path / "a").read_bytes()[:8], "little") % 8 == 0


def test_views_and_shared_tensors_can_be_written(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    weights.write_safetensors(tmp_path / "views", {"whole": whole, "turned": whole.T, "row": whole[1]}, {})
    read = weights.read_safetensors(tmp_path / "views")[0]
    assert torch.equal(read["turned"], whole.T) and torch.equal(read["row"], whole[1])


def test_nothing_half_written_is_left(small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = small_file.read_bytes()

    def full_disk(_partial: Path, _path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(InputError, match="No space left"):
        weights.write_safetensors(small_file, {"c": torch.zeros(3)}, {})
    assert small_file.read_bytes() == before
    assert list(small_file.parent.iterdir()) == [small_file]


def test_writing_below_a_file_is_an_input_error(small_file: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        weights.write_safetensors(small_file / "below", TENSORS, {})


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
OVERFLOW = json.dumps({"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}).encode()
SIX_BITS = json.dumps({"a": {"dtype": "F6_E2M3", "shape": [8], "data_offsets": [0, 6]}}).encode()


def _safetensors(header: bytes, body: bytes = bytes(8)) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


@pytest.mark.parametrize(("length", "read"), [(16_000_000, True), (16_000_001, False)])
def test_a_header_may_have_sixteen_megabytes(tmp_path: Path, length: int, read: bool) -> None:
    """Parsed JSON takes many times its length, and any file could claim to be all header."""
    path = tmp_path / "long.safetensors"
    path.write_bytes(_safetensors(HEADER.ljust(length)))
    if read:
        assert weights.read_header(path) == ({"a": (2,)}, {})
        return
    with pytest.raises(WeightsError, match="damaged"):
        weights.read_header(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gone.safetensors", None, "cannot be read: No such file"),
        ("empty.safetensors", b"", "is empty"),
        ("short.safetensors", b"\x08\x00", "is damaged or is not"),
        ("page.safetensors", b"<!DOCTYPE html><html>", "is a web page"),
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("keras.safetensors", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("zip.pt", b"PK\x03\x04" + bytes(60), "run code"),
        ("pickled.safetensors", pickle.dumps({"a": 1}), "run code"),
        ("old.ckpt", b"anything at all", "never unpickles"),
        ("cut.safetensors", _safetensors(HEADER)[:-1], "is damaged"),
        ("long.safetensors", _safetensors(HEADER) + b"1", "is damaged"),
        ("cut_header.safetensors", _safetensors(HEADER)[:40], "is damaged"),
        ("huge_header.safetensors", b"\xff" * 7 + b"\x7f{" + bytes(90), "is damaged"),
        ("nan.safetensors", _safetensors(b'{"__metadata__":{"a":NaN}}', b""), "header cannot be read"),
        ("number.safetensors", _safetensors(b'{"__metadata__":{"a":1}}', b""), "header cannot be read"),
        ("list.safetensors", _safetensors(b'{"__metadata__":[]}', b""), "header cannot be read"),
        ("half.safetensors", _safetensors(b'{"__metadata__":{"a":"\\ud800"}}', b""), "header cannot be read"),
        ("deep.safetensors", _safetensors(b'{"a":' * 100_000), "header cannot be read"),
        ("infinite.safetensors", _safetensors(HEADER.replace(b"[2]", b"[1e999]")), "header cannot be read"),
        ("dtype.safetensors", _safetensors(HEADER.replace(b"F32", b"Q32")), "is damaged"),
        ("overflow.safetensors", _safetensors(OVERFLOW, b""), "is damaged"),
        ("six.safetensors", _safetensors(SIX_BITS, bytes(6)), "is damaged"),
    ],
)
def test_what_is_not_safetensors_is_refused_with_its_reason(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason) as caught:
        weights.read_safetensors(path)
    assert name in caught.value.message and caught.value.message.endswith(".") and caught.value.hint


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        weights.read_safetensors(tmp_path)


class Trap:
    """A pickle that would leave a file behind if anything unpickled it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_ever_unpickled(tmp_path: Path, suffix: str, protocol: int) -> None:
    path, sprung = tmp_path / f"trap{suffix}", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(sprung), protocol=protocol))
    with pytest.raises(WeightsError):
        weights.read_safetensors(path)
    assert not sprung.exists()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_files_load_or_are_refused(small_file: Path, data: st.DataObject) -> None:
    """Any bytes changed, dropped or added anywhere: tensors as the header says, or a WeightsError."""
    original = bytearray(small_file.read_bytes())
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutated)))
        cut = data.draw(st.integers(0, 8))
        mutated[place : place + cut] = data.draw(st.binary(max_size=8))
    path = small_file.with_name("mutated.safetensors")
    path.write_bytes(mutated)
    try:
        tensors, metadata = weights.read_safetensors(path)
    except WeightsError as error:
        assert str(path) in error.message
        return
    shapes, again = weights.read_header(path)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes and metadata == again
    length = int.from_bytes(original[:8], "little")
    if mutated[: 8 + length] == original[: 8 + length]:
        assert shapes == {"a.weight": (2, 3), "b": (2,)}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=80), sized=st.booleans())
def test_arbitrary_files_load_or_are_refused(tmp_path: Path, content: bytes, sized: bool) -> None:
    path = tmp_path / "arbitrary.safetensors"
    path.write_bytes(_safetensors(b"{" + content) if sized else content)
    with pytest.raises(WeightsError):
        weights.read_safetensors(path)


def test_load_strict_takes_what_fits_and_names_what_does_not() -> None:
    linear = nn.Linear(2, 3)
    weights.load_strict(linear, {"weight": torch.ones(3, 2).half(), "bias": torch.zeros(3)}, Path("w"))
    assert torch.equal(linear.weight, torch.ones(3, 2)) and linear.weight.dtype == torch.float32
    wrong = {"weight": torch.ones(2, 2), **{f"extra{n}": torch.ones(1) for n in range(5)}}
    with pytest.raises(WeightsError) as caught:
        weights.load_strict(linear, wrong, Path("some/w.safetensors"))
    assert caught.value.message == (
        "some/w.safetensors does not fit Linear: it lacks bias; "
        "it has too many: extra0, extra1, extra2 and 2 more; another shape in weight."
    )
    assert torch.equal(linear.weight, torch.ones(3, 2))  # nothing was copied


# --- the manifest


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than one block
    (tmp_path / "f").write_bytes(content)
    assert weights.file_sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_manifest_is_refreshed_and_verified(tmp_path: Path) -> None:
    for name in ("a/one", "a/two", "three"):
        weights.write_safetensors(tmp_path / f"{name}.safetensors", TENSORS, {"name": name})
    (tmp_path / "README.md").write_text("about")
    assert {s for _, s in weights.verify(tmp_path)} == {"unlisted"}
    entries = weights.write_manifest(tmp_path)
    assert [e.file for e in entries] == ["a/one.safetensors", "a/two.safetensors", "three.safetensors"]
    assert entries == weights.read_manifest(tmp_path)
    assert [s for _, s in weights.verify(tmp_path)] == ["ok"] * 3

    one, two, three = (tmp_path / e.file for e in entries)
    flipped = bytearray(one.read_bytes())
    flipped[-1] ^= 1
    one.write_bytes(flipped)
    two.unlink()
    three.write_bytes(three.read_bytes()[:-1])
    (tmp_path / "new.safetensors").write_bytes(b"?")
    statuses = {e.file: s for e, s in weights.verify(tmp_path)}
    expected = {one: "damaged", two: "missing", three: "damaged", tmp_path / "new.safetensors": "unlisted"}
    assert statuses == {path.relative_to(tmp_path).as_posix(): s for path, s in expected.items()}
    quick = {e.file: s for e, s in weights.verify(tmp_path, quick=True)}
    assert quick == statuses | {"a/one.safetensors": "ok"}  # the size is right


def test_refresh_keeps_texts_and_entries_whose_file_is_gone(tmp_path: Path) -> None:
    kept = WeightsEntry("here.safetensors", "0" * 64, 1, "a source", "MIT", "a network", "pictures")
    gone = WeightsEntry("gone.safetensors", "1" * 64, 7, "s", "MIT", "w", "t")
    rows = [vars(kept), vars(gone)]
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "files": rows}))
    weights.write_safetensors(tmp_path / "here.safetensors", TENSORS, {})
    gone_now, here = weights.write_manifest(tmp_path)
    assert gone_now == gone
    assert (here.source, here.licence, here.what, here.trained_on) == (
        "a source",
        "MIT",
        "a network",
        "pictures",
    )
    assert here.bytes == (tmp_path / "here.safetensors").stat().st_size
    assert here.sha256 == weights.file_sha256(tmp_path / "here.safetensors")


def test_refresh_runs_as_a_command_and_says_what_to_fill_in(tmp_path: Path) -> None:
    weights.write_safetensors(tmp_path / "n.safetensors", TENSORS, {})
    command = [sys.executable, "-m", "diffseg_cli.weights.files"]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "n.safetensors" in done.stdout
    assert "fill in: source, licence, what, trained_on" in done.stdout
    assert [s for _, s in weights.verify(tmp_path)] == ["ok"]
    wrong = subprocess.run([*command, str(tmp_path / "no")], cwd=REPOSITORY, capture_output=True, text=True)
    assert wrong.returncode == 1 and "usage:" in wrong.stderr


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format": 2, "files": []}', '{"format": 1, "files": [{"file": "../up"}]}']
    + [
        json.dumps({"format": 1, "files": [row]})
        for row in ({"file": "/etc/f"}, {"name": "a"}, {"file": 3}, 3)
    ]
    + ['{"format": 1, "files": [{"file": "a", "bytes": "9"}]}', "[" * 100_000],
)
def test_a_damaged_manifest_is_a_weights_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match=re.escape(str(tmp_path))):
        weights.verify(tmp_path)


def test_survey_reports_the_file_that_would_be_used(roots: dict[str, Path]) -> None:
    for folder in roots.values():
        (folder / "x" / "everywhere.safetensors").unlink()
    weights.write_safetensors(roots["package"] / "a.safetensors", TENSORS, {})
    weights.write_safetensors(roots["package"] / "b.safetensors", TENSORS, {})
    weights.write_manifest(roots["package"])
    weights.write_safetensors(roots["flag"] / "a.safetensors", {"mine": torch.ones(1)}, {})
    (roots["package"] / "b.safetensors").rename(roots["cwd"] / "b.safetensors")
    found = {item.entry.file: (item.status, item.path) for item in weights.survey()}
    assert found == {
        "a.safetensors": ("unlisted", roots["flag"] / "a.safetensors"),
        "b.safetensors": ("unlisted", roots["cwd"] / "b.safetensors"),
    }
    for name, (_, path) in found.items():
        assert weights.find_weights(name) == path


# --- checkpoints


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "c.safetensors"
    write_checkpoint(path, TENSORS, INFO)
    tensors, info = read_checkpoint(path, backbone="compact", fingerprint="ab12")
    assert info == INFO == read_checkpoint_info(path)
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_undefined_metrics_come_back_as_none(tmp_path: Path) -> None:
    metrics = {"miou": float("nan"), "loss": [float("inf"), 1.0]}
    write_checkpoint(tmp_path / "c", TENSORS, CheckpointInfo("compact", "x", {}, {}, metrics))
    assert read_checkpoint_info(tmp_path / "c").metrics == {"miou": None, "loss": [None, 1.0]}


@pytest.mark.parametrize(
    ("backbone", "fingerprint", "reason"),
    [
        ("kandinsky-2-2", "ab12", "trained on compact, and the model in use is kandinsky-2-2"),
        ("compact", "ffff", r"other weights of compact \(ab12\) than those in use \(ffff\)"),
    ],
)
def test_checkpoint_of_another_backbone_is_refused(
    tmp_path: Path, backbone: str, fingerprint: str, reason: str
) -> None:
    write_checkpoint(tmp_path / "c.safetensors", TENSORS, INFO)
    with pytest.raises(WeightsError, match=reason) as caught:
        read_checkpoint(tmp_path / "c.safetensors", backbone=backbone, fingerprint=fingerprint)
    assert "c.safetensors" in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "other"}, "not a diffseg checkpoint"),
        ({"format": None}, "not a diffseg checkpoint"),
        ({"format_version": "2"}, "checkpoint format 2, and this diffseg reads 1"),
        ({"format_version": None}, "checkpoint format unknown"),
        ({"config": None}, "damaged"),
        ({"config": "{"}, "damaged"),
        ({"training": "[]"}, "damaged"),
        ({"metrics": "[" * 100_000}, "damaged"),
        ({"backbone": None}, "damaged"),
    ],
)
def test_foreign_and_newer_checkpoints_are_refused(
    tmp_path: Path, change: dict[str, str | None], reason: str
) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, TENSORS, INFO)
    metadata = {**weights.read_safetensors(path)[1], **change}
    weights.write_safetensors(path, TENSORS, {k: v for k, v in metadata.items() if v is not None})
    with pytest.raises(WeightsError, match=reason):
        read_checkpoint(path, backbone="compact", fingerprint="ab12")
