"""The switches of the paper's ablations: what they change, and that a checkpoint remembers them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.choices.training import FormChoice
from diffseg_cli.cli.main import app
from diffseg_cli.config import PamConfig, ScmConfig
from diffseg_cli.errors import UsageError, WeightsError
from diffseg_cli.loading import load_compact, load_modules
from diffseg_cli.models.compact import CompactBackbone
from diffseg_cli.models.knowledge import KNOWLEDGE
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.trained import Trained
from diffseg_cli.training.run_state import MODULES
from diffseg_cli.training.switches import choose_modules
from diffseg_cli.weights.checkpoint import CheckpointInfo, write_checkpoint
from tools import ablate


@pytest.fixture(scope="module")
def backbone() -> CompactBackbone:
    """The shipped one at 128 px: features of random weights hardly differ from place to place."""
    return load_compact(device=torch.device("cpu"), image_size=128)


def look_with(backbone: CompactBackbone, knowledge: str, *, channel: int = 0) -> torch.Tensor:
    """The map (2 1 16 16) of noise, asked for a bright square in one channel."""
    trained = Trained(torch.nn.ModuleDict(), knowledge=knowledge)
    asked = Segmenter(backbone=backbone, trained=trained, hed=None, head="attention")
    masks = torch.zeros(2, 1, 128, 128)
    masks[..., 32:96, 32:96] = 1
    frames = 0.3 * torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    frames[:, channel] += 0.7 * masks[:, 0]
    support = asked.encode_frames(frames, masks)
    support = support.seen_again(support.latents, support.masks)
    query = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    return asked.forward(asked.backbone.encode(query), None, support).scores.score_map


def test_each_knowledge_gives_its_own_map(backbone: CompactBackbone) -> None:
    maps = {name: look_with(backbone, name) for name in KNOWLEDGE}
    for score_map in maps.values():
        assert score_map.shape == (2, 1, 16, 16) and score_map.min() == 0 and score_map.max() == 1
    names = list(maps)
    for index, name in enumerate(names):
        assert not any(torch.allclose(maps[name], maps[other], atol=1e-3) for other in names[index + 1 :])


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_only_self_attention_knows_no_prompt(backbone: CompactBackbone, knowledge: str) -> None:
    one, other = (look_with(backbone, knowledge, channel=c) for c in (0, 1))
    assert torch.allclose(one, other, atol=1e-3) == (knowledge == "self")


@pytest.mark.parametrize("knowledge", ["resnet", "transformer"])
def test_features_find_a_copied_object(small_segmenter: Segmenter, knowledge: str) -> None:
    """The query is the support: its own object must score above its background."""
    generator = torch.Generator().manual_seed(0)
    frame = 0.4 * torch.rand(1, 3, 128, 128, generator=generator)
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 32:96, 32:96] = 1
    frame[:, 0] += 0.6 * mask[:, 0]
    trained = Trained(torch.nn.ModuleDict(), knowledge=knowledge)
    bare = Segmenter(backbone=small_segmenter.backbone, trained=trained, hed=None, head="attention")
    score = bare.forward(bare.backbone.encode(frame), None, bare.encode_frames(frame, mask)).scores.score_map
    assert score[..., 4:12, 4:12].mean() > score[..., :4, :].mean() + 0.1


def test_switches_become_modules() -> None:
    full = choose_modules(FormChoice(channel_dropout=0.1))
    assert full.scm == ScmConfig() and full.pam == PamConfig(channel_dropout=0.1)
    alone = choose_modules(FormChoice(modules="pam", pam_attentions="attention,attention,conv"))
    assert alone.scm is None and alone.pam and alone.pam.modes == ("attention", "none", "conv")
    scm = choose_modules(FormChoice(modules="scm", scm_scales="1", scm_separate=True, image_size=256))
    assert scm.pam is None and scm.scm == ScmConfig(shared=False, scales=(1,)) and scm.image_size == 256
    blind = choose_modules(FormChoice(pam_attentions="none,conv,attention", scm_scales="none"))
    assert blind.scm is None and blind.pam and blind.pam.modes == ("none", "conv", "attention")
    for wrong in ({"pam_attentions": "attention,conv"}, {"pam_attentions": "a,b,c"}, {"scm_scales": "fine"}):
        with pytest.raises(UsageError, match="'"):
            choose_modules(FormChoice(**wrong))


def make_classes(root: Path, pictures: int = 3) -> None:
    generator = np.random.default_rng(0)
    for name in ("ball", "brick"):
        (root / name).mkdir(parents=True)
        for index in range(pictures):
            picture = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
            mask = np.zeros((60, 80), np.uint8)
            mask[10:40, 20:60] = 255
            Image.fromarray(picture).save(root / name / f"{index}.jpg")
            Image.fromarray(mask).save(root / name / f"{index}.png")


def test_a_checkpoint_remembers_its_switches(tmp_path: Path) -> None:
    make_classes(tmp_path / "classes")
    options = ["--root", str(tmp_path / "classes"), "--steps", "1", "--batch-size", "2", "--views", "1"]
    options += ["--image-size", "128", "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    for name, switches in (
        ("scm", ["--modules", "scm", "--knowledge", "cross"]),
        ("pam", ["--modules", "pam"]),
    ):
        out = tmp_path / name
        result = CliRunner().invoke(app, ["train", *options, *switches, "--out", str(out)])
        assert result.exit_code == 0, result.output
    scm, pam = (load_segmenter(checkpoint=tmp_path / n / MODULES, device="cpu") for n in ("scm", "pam"))
    assert (scm.head, scm.trained.knowledge, set(scm.trained.modules)) == ("attention", "cross", {"scm"})
    assert scm.description.endswith("with SCM") and pam.description.endswith("with PAM")
    assert (pam.head, pam.backbone.image_size, set(pam.trained.modules)) == ("pam", 128, {"pam"})
    assert scm.edge_size == 64 and scm.hed is not None and pam.hed is None
    assert len(list((tmp_path / "cache").iterdir())) == 1
    sample = tmp_path / "classes" / "ball" / "0.jpg"
    prediction = scm.segment(sample, scm.encode_support([(sample, sample.with_suffix(".png"))]))
    assert prediction.mask.shape == (60, 80)
    with pytest.raises(WeightsError, match="PAM"):
        load_segmenter(checkpoint=tmp_path / "scm" / MODULES, device="cpu", head="pam")


def test_sizes_and_knowledge_nobody_knows_are_refused(tmp_path: Path) -> None:
    device = torch.device("cpu")
    with pytest.raises(UsageError, match="multiple of 64"):
        load_compact(device=device, image_size=250)
    backbone = load_compact(device=device, image_size=128)
    assert backbone.fingerprint.endswith("-128px")
    config = {"scm": None, "pam": None, "knowledge": "gossip"}
    write_checkpoint(
        tmp_path / MODULES, {"x": torch.zeros(1)}, CheckpointInfo("compact", backbone.fingerprint, config)
    )
    with pytest.raises(WeightsError, match="gossip"):
        load_modules(tmp_path / MODULES, backbone)


def test_a_table_is_run_once_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        make_classes(tmp_path / "data" / split, pictures=6)
    rows = [f"{s},{c},{i},,{s}" for s in ("train", "val") for c in ("ball", "brick") for i in range(6)]
    header = "source,class,id,also_in_image,split"
    (tmp_path / "data" / "index.csv").write_text("\n".join([header, *rows]))
    out, page = tmp_path / "out", tmp_path / "ablations.md"
    words = ["ablate", "--root", str(tmp_path / "data"), "--out", str(out), "--val-sources", "val"]
    words += ["--steps", "1", "--batch-size", "2", "--image-size", "64", "--episodes", "2", "--threads", "2"]
    monkeypatch.setattr("sys.argv", [*words, "--table", "3"])
    ablate.main()
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert set(made) == {"neither.json", "scm.json", "pam.json", "full.json"}
    ablate.main()
    assert made == {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}

    monkeypatch.setattr("sys.argv", ["ablate", "--out", str(out), "--page", str(page)])
    ablate.main()
    page.write_text(page.read_text() + "By hand.\n")
    ablate.main()
    text = page.read_text()
    assert text.endswith("## What holds here\n\nBy hand.\n") and text.count("By hand.") == 1
    assert "| PAM, no attention maps | 0." in text and "--table 3 --root" in text
    monkeypatch.setattr("sys.argv", [*words, "--table", "3", "--seed", "1"])
    with pytest.raises(SystemExit, match="give another --out"):
        ablate.main()
