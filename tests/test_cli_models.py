"""diffseg models: text, JSON and exit codes."""

import errno
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from diffseg_cli.cli.main import app
from diffseg_cli.doctor import examine_machine
from diffseg_cli.errors import WeightsError
from diffseg_cli.weights import files as weights
from diffseg_cli.weights import hub
from diffseg_cli.weights.checkpoint import CheckpointInfo, write_checkpoint
from diffseg_cli.weights.hub import locate_kandinsky

REPOSITORY = Path(__file__).parents[1]
COMMITS = Path("snapshots", "abc")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only weights there are: one network and one checkpoint; no Kandinsky, no hub."""
    root = tmp_path / "weights"
    weights.write_safetensors(root / "net" / "edges.safetensors", {"w": torch.ones(2, 3)}, {"note": "small"})
    info = CheckpointInfo("compact", "ab12", {"width": 8}, {"seed": 3}, {"miou": 0.25})
    write_checkpoint(root / "net" / "modules.safetensors", {"v": torch.ones(5)}, info)
    weights.write_manifest(root)
    rows = json.loads((root / "manifest.json").read_text())
    rows["files"][0] |= {"source": "a package", "licence": "MIT", "what": "Edges.", "trained_on": "BSDS500"}
    (root / "manifest.json").write_text(json.dumps(rows))
    monkeypatch.setattr(weights, "weights_roots", lambda: [root])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return root


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


def test_list_shows_what_is_there_and_what_can_be_had() -> None:
    result = run("list")
    assert result.exit_code == 0
    header, edges, modules, kandinsky = result.stdout.splitlines()
    assert header.split() == ["name", "status", "size", "licence", "what"]
    assert re.fullmatch(r"net/edges +ok +0\.0 MB +MIT +Edges\.", edges)
    assert modules.startswith("net/modules")
    assert "not installed" in kandinsky and "diffseg models pull kandinsky-2-2" in kandinsky


def test_list_as_json_is_one_object_a_line(folder: Path) -> None:
    result = run("list", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["name"] for row in rows] == ["net/edges", "net/modules", "kandinsky-2-2"]
    path = folder / "net" / "edges.safetensors"
    assert rows[0] == {
        "name": "net/edges",
        "status": "ok",
        "what": "Edges.",
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": weights.file_sha256(path),
        "licence": "MIT",
        "source": "a package",
        "trained_on": "BSDS500",
    }
    assert rows[2]["status"] == "not installed"


def test_list_notices_a_missing_and_a_cut_file(folder: Path) -> None:
    (folder / "net" / "modules.safetensors").unlink()
    (folder / "net" / "edges.safetensors").write_bytes(b"cut")
    rows = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert [row["status"] for row in rows[:2]] == ["damaged", "missing"]


def test_verify_passes_whole_weights_and_names_unlisted_ones(folder: Path) -> None:
    result = run("verify")
    assert result.exit_code == 0 and result.stderr == ""
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:]] == [
        ["net/edges", "ok"],
        ["net/modules", "ok"],
    ]
    weights.write_safetensors(folder / "mine.safetensors", {"m": torch.ones(1)}, {})
    result = run("verify", "--json")
    assert result.exit_code == 0
    statuses = {row["name"]: row["status"] for row in map(json.loads, result.stdout.splitlines())}
    assert statuses == {"mine": "unlisted", "net/edges": "ok", "net/modules": "ok"}


def test_verify_names_damaged_and_missing_files_and_exits_4(folder: Path) -> None:
    edges = folder / "net" / "edges.safetensors"
    content = bytearray(edges.read_bytes())
    content[-1] ^= 1  # the size stays right
    edges.write_bytes(content)
    (folder / "net" / "modules.safetensors").unlink()
    result = run("verify", "--json")
    assert result.exit_code == 4
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["damaged", "missing"]
    assert "net/edges.safetensors is damaged, net/modules.safetensors is missing." in " ".join(
        result.stderr.split()
    )


@pytest.mark.usefixtures("folder")
def test_what_the_system_refuses_is_unreadable_and_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of another user, and the cache of another user."""

    def refusing(name: str, within: str) -> None:
        original = getattr(Path, name)

        def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
            if within in self.parts:
                raise PermissionError(errno.EACCES, "Permission denied", str(self))
            return original(self, *arguments, **options)

        monkeypatch.setattr(Path, name, refuse)

    refusing("open", "edges.safetensors")
    refusing("is_dir", "snapshots")
    rows = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert [row["status"] for row in rows] == ["unreadable", "ok", "unreadable"]
    result = run("verify")
    assert result.exit_code == 4 and "net/edges.safetensors is unreadable." in result.stderr
    findings = {finding.name: finding for finding in examine_machine()}
    assert findings["model net/edges"].hint == "Check who may read it."
    assert "snapshots cannot be read: Permission denied" in findings["model kandinsky-2-2"].what
    with pytest.raises(WeightsError, match="snapshots cannot be read: Permission denied"):
        locate_kandinsky()


def test_verify_without_any_weights_exits_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "weights_roots", lambda: [tmp_path / "nowhere"])
    result = run("verify")
    assert result.exit_code == 4 and "No weights were found" in result.stderr


@pytest.mark.parametrize("target", ["net/edges", "net/edges.safetensors"])
def test_show_tells_everything_about_one_file(folder: Path, target: str) -> None:
    result = run("show", target)
    assert result.exit_code == 0
    *lines, metadata, note = result.stdout.strip().splitlines()
    shown = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)
    assert shown["licence"] == "MIT" and shown["trained on"] == "BSDS500" and shown["status"] == "ok"
    assert shown["path"] == str(folder / "net" / "edges.safetensors")
    assert shown["tensors"] == "1" and shown["parameters"] == "6"
    assert (metadata, note) == ("metadata", "  note  small")


def test_show_a_folder_name_and_the_records_of_a_checkpoint() -> None:
    rows = [json.loads(line) for line in run("show", "net", "--json").stdout.splitlines()]
    assert [row["name"] for row in rows] == ["net/edges", "net/modules"]
    assert rows[1]["checkpoint"] == {
        "backbone": "compact",
        "fingerprint": "ab12",
        "config": {"width": 8},
        "training": {"seed": 3},
        "metrics": {"miou": 0.25},
    }
    assert "  metrics\n    miou  0.25\n" in run("show", "net").stdout


def test_show_a_file_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    weights.write_safetensors(path, {"a": torch.ones(4), "b": torch.ones(2, 2)}, {})
    row = json.loads(run("show", str(path), "--json").stdout)
    assert (row["tensors"], row["parameters"]) == (2, 8)
    assert row["sha256"] == weights.file_sha256(path)


def test_show_a_missing_file_of_the_manifest_says_so(folder: Path) -> None:
    (folder / "net" / "edges.safetensors").unlink()
    result = run("show", "net/edges")
    assert result.exit_code == 0 and re.search(r"^status +missing$", result.stdout, re.MULTILINE)


def test_show_kandinsky_says_how_to_get_it() -> None:
    result = run("show", "kandinsky-2-2")
    assert result.exit_code == 0
    assert "not installed" in result.stdout and "diffseg models pull kandinsky-2-2" in result.stdout


def test_show_what_cannot_be_read_exits_4(tmp_path: Path) -> None:
    result = run("show", "nothing")
    assert result.exit_code == 4
    assert "nothing is neither a model nor a file." in result.stderr
    assert "net/edges, net/modules, kandinsky-2-2" in " ".join(result.stderr.split())
    (tmp_path / "pickled.pt").write_bytes(b"PK\x03\x04" + bytes(60))
    result = run("show", str(tmp_path / "pickled.pt"))
    assert result.exit_code == 4 and "run code" in " ".join(result.stderr.split())
    assert result.stdout == ""


def lay_out(parts: dict[str, Path]) -> Path:
    """Kandinsky's files, of one tensor each, below a folder per repository. Returns the UNet's."""
    for component in hub.COMPONENTS:
        home = parts[component.repository] / component.name
        home.mkdir(parents=True)
        (home / component.config).write_text("{}")
        if component.weights:
            tensors = {"w": torch.zeros(500, 500)}
            weights.write_safetensors(home / f"{component.weights}.safetensors", tensors, {})
    return parts["decoder"] / "unet" / "diffusion_pytorch_model.safetensors"


def test_kandinsky_in_the_cache_is_listed_with_its_size_and_damage(tmp_path: Path) -> None:
    names = {part: f"models--{name.replace('/', '--')}" for part, name in hub.REPOSITORIES.items()}
    unet = lay_out({part: tmp_path / "cache" / name / COMMITS for part, name in names.items()})
    row = json.loads(run("show", "kandinsky-2-2", "--json").stdout)
    assert row["status"] == "ok" and 3_000_000 < row["bytes"] < 3_001_000 and len(row["files"]["unet"]) == 1
    assert row["parameters"] == {"unet": 250_000, "movq": 250_000, "image_encoder": 250_000}
    assert re.search(r"^kandinsky-2-2 +ok +3\.0 MB +Apache-2\.0", run("list").stdout, re.MULTILINE)
    whole = unet.read_bytes()
    unet.write_bytes(whole[: len(whole) // 2])
    assert re.search(r"^kandinsky-2-2 +damaged .*has \d+ bytes", run("list").stdout, re.MULTILINE)
    result = run("verify")
    assert result.exit_code == 4 and "kandinsky-2-2 is damaged" in result.stderr
    unet.unlink()
    listed = run("list").stdout
    assert re.search(r"^kandinsky-2-2 +incomplete .*it lacks unet/diffusion_pyt", listed, re.MULTILINE)


def test_a_folder_with_kandinsky_is_shown_and_verified(tmp_path: Path) -> None:
    lay_out({"decoder": tmp_path / "k" / "decoder", "prior": tmp_path / "k" / "prior"})
    row = json.loads(run("show", str(tmp_path / "k"), "--json").stdout)
    assert (row["status"], row["path"]) == ("ok", str(tmp_path / "k" / "decoder"))
    result = run("verify", str(tmp_path / "k"))  # its tensors are not those of the networks
    assert result.exit_code == 4 and "is not the UNet of Kandinsky 2.2" in " ".join(result.stderr.split())
    (tmp_path / "empty").mkdir()
    result = run("verify", str(tmp_path / "empty"))
    assert result.exit_code == 4 and "empty is not installed" in " ".join(result.stderr.split())
    with_folder = CliRunner().invoke(app, ["doctor", str(tmp_path / "k"), str(tmp_path / "empty")])
    assert with_folder.exit_code == 4 and "none of its files" in " ".join(with_folder.stdout.split())


def test_pull_passes_its_options_on_and_prints_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(hub, "pull_kandinsky", lambda **options: asked.append(options) or Path("there"))
    result = run("pull", "kandinsky-2-2", "--revision", "v1", "--variant", "fp16")
    assert (result.exit_code, result.stdout) == (0, "there\n")
    assert asked == [{"revision": "v1", "variant": "fp16"}]


def test_pull_without_a_network_exits_4_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("pull", "kandinsky-2-2")
    assert result.exit_code == 4 and result.stdout == ""
    message = " ".join(result.stderr.split())
    assert "HF_HUB_OFFLINE is set" in message and "--model PATH" in message


def test_pull_knows_one_name() -> None:
    result = run("pull", "compact")
    assert result.exit_code == 2
    assert "nothing to fetch under the name 'compact'" in " ".join(result.stderr.split())


def test_a_narrow_terminal_gets_whole_names_and_no_torch_is_imported() -> None:
    """In a real terminal, in a process of its own."""
    code = (
        "import sys; from diffseg_cli.cli.main import app; app(['models', 'list'], standalone_mode=False);"
        "print('loaded:', [name for name in ('torch', 'numpy', 'diffusers') if name in sys.modules])"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "60", "DIFFSEG_WEIGHTS": str(REPOSITORY / "weights")}
    done = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:  # the other end has closed
        pass
    os.close(ours)
    assert done.wait() == 0, shown.decode()
    lines = shown.decode().splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.startswith("compact/decoder  ok ") for line in lines)
    assert "    What the compact model fits to its encoder: channel" in lines
    assert "loaded: []" in shown.decode()


@pytest.mark.parametrize("verb", [[], ["list"], ["show"], ["verify"], ["pull"]])
def test_help_ends_with_two_examples(verb: list[str]) -> None:
    result = run(*verb, "--help")
    assert result.exit_code == 0
    examples = result.stdout.split("Examples:")[1]
    assert len(re.findall(rf"diffseg models {' '.join(verb)}", examples)) == 2
