"""Train HED's student: a small network that repeats HED's edge maps at the size SCM reads.

    python -m tools.distil_edges --root data/fewshot --more data/backgrounds --work runs/edges --steps 2000
    python -m tools.distil_edges --root data/fewshot --more data/backgrounds --work runs/edges --steps 2500 \\
        --lr 1e-3 --init runs/edges/student.safetensors

Images come from the `train` split and a folder of photographs without masks, whole and as random crops with
changed colours; HED's answers to them are computed once and kept in --work. Prints how near the student comes
to HED on the `val` split and writes `student.safetensors` there.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg_cli.config import CompactConfig
from diffseg_cli.datasets.episode import read_folder
from diffseg_cli.frames import to_frame
from diffseg_cli.models.hed_student import HedStudent
from diffseg_cli.reading.image_io import read_image, read_mask
from diffseg_cli.views import recoloured, zoomed_in
from diffseg_cli.weights.edge_detectors import load_hed
from diffseg_cli.weights.files import load_strict, read_safetensors, write_safetensors

SIZE = CompactConfig.image_size // 2  # as `loading.edge_size`
PICTURES = 4800
BATCH = 16
WARMUP_STEPS = 100
Source = tuple[Path, Path | None, list[int]]  # image, mask, seed of its crop (empty: whole)


def training_sources(root: Path, more: Path) -> list[Source]:
    """Every training image whole, every other one cropped too, three views of each further image."""
    sources: list[Source] = []
    for index, sample in enumerate(read_folder(root, split="train").samples):
        sources.append((sample.image, sample.mask, []))
        if index % 2 == 0 and "tuxpaint" not in sample.image.as_posix():
            sources.append((sample.image, sample.mask, [7, index, 1]))
    for index, path in enumerate(sorted(more.glob("*.jpg"))):
        sources += [(path, None, [7, 100_000 + index, view] if view else []) for view in range(3)]
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(sources))
    return [sources[index] for index in order[:PICTURES]]


@torch.inference_mode()
def ask_hed(sources: list[Source], folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Images uint8 (r 3 E E) and HED's edges uint8 (r E E), from the folder if they are there."""
    paths = [folder / f"{name}_{what}.npy" for what in "xy"]
    if not paths[1].is_file():
        hed = load_hed()
        pairs = []
        for path, mask_path, seed in sources:
            image = read_image(path)
            if seed:
                mask = read_mask(mask_path) if mask_path else np.ones(image.shape[:2], bool)
                generator = np.random.Generator(np.random.PCG64(seed))
                image, _ = recoloured(zoomed_in((image, mask), generator), generator)
            frame = to_frame(image, CompactConfig.image_size)[None]
            frame = F.interpolate(frame, size=(SIZE, SIZE), mode="area")
            pairs.append([(values * 255).round().byte().numpy() for values in (frame[0], hed(frame)[0, 0])])
        for path, values in zip(paths, zip(*pairs, strict=True), strict=True):
            np.save(path, np.stack(values))
    images, edges = (torch.from_numpy(np.load(path)) for path in paths)
    return images, edges


def batches(images: Tensor, edges: Tensor, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (16 3 E E) and edges (16 1 E E) in [0, 1], half of them mirrored."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        image, edge_map = images[rows].float() / 255, edges[rows, None].float() / 255
        if torch.rand((), generator=generator) < 0.5:
            image, edge_map = image.flip(-1), edge_map.flip(-1)
        yield image.contiguous(memory_format=torch.channels_last), edge_map


def train(student: HedStudent, images: Tensor, edges: Tensor, *, steps: int, lr: float, seed: int) -> None:
    """AdamW with cosine decay; leaves the moving average of the weights in the student."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=1e-4)
    average = {name: value.clone() for name, value in student.state_dict().items()}
    for step, (image, edge_map) in enumerate(batches(images, edges, steps, seed)):
        rate = lr * min(1, (step + 1) / WARMUP_STEPS) * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
        optimizer.param_groups[0]["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            logits = student.logits(image)
        error = F.binary_cross_entropy_with_logits(logits.float(), edge_map)
        error = error + 2 * F.mse_loss(logits.float().sigmoid(), edge_map)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        kept = min(0.995, (step + 1) / (step + 20))
        for name, value in student.state_dict().items():
            average[name].lerp_(value, 1 - kept)
        if step % 500 == 499:
            print(f"step {step + 1}: loss {error.item():.4f}", flush=True)
    student.load_state_dict(average)


@torch.inference_mode()
def compare(student: HedStudent, images: Tensor, edges: Tensor) -> str:
    """How near the student's maps come to HED's."""
    guessed = torch.cat([student(image[None].float() / 255)[0] for image in images])
    wanted = edges.float() / 255
    correlation = torch.corrcoef(torch.stack([guessed.flatten(), wanted.flatten()]))[0, 1]
    return f"mean difference {(guessed - wanted).abs().mean():.4f}, correlation {correlation:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--more", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--init", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    held_out = read_folder(options.root, split="val", sources=["voc", "coco_mini"]).samples[::4]
    val = ask_hed([(sample.image, sample.mask, []) for sample in held_out], options.work, "val")
    data = ask_hed(training_sources(options.root, options.more), options.work, "train")
    torch.manual_seed(0)
    student = HedStudent().to(memory_format=torch.channels_last)
    if options.init:
        state = {name: value.float() for name, value in read_safetensors(options.init)[0].items()}
        load_strict(student, state, options.init)
    train(student, *data, steps=options.steps, lr=options.lr, seed=options.steps)
    halves = {name: value.half() for name, value in student.state_dict().items()}
    student.load_state_dict(halves)
    print(f"val, against HED: {compare(student, *val)}")
    metadata = {"source": "distilled from hed_bsds500.safetensors", "licence": "Apache-2.0"}
    write_safetensors(options.work / "student.safetensors", halves, metadata)


if __name__ == "__main__":
    main()
