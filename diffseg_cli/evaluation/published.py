"""Published figures of few-shot segmentation, each under the protocol it was measured in and with its source.

Mean IoU in percent, 1-shot and 5-shot. Two lists never meet: methods whose test classes were kept out of
training ("strict", training-free ones among them) and generalists that saw the test classes, which are left
out altogether. COCO figures are of COCO-20i (60 / 20 classes), but for the DiffSeg paper's own, which is of
its 40 / 20 / 20.
"""

from dataclasses import dataclass

PAPER = "DiffSeg paper, tables 1 and 2"
FS_SAM2 = "FS-SAM2, tables of its repository (fornib/FS-SAM2)"
FSS_SAM3 = "FSS-SAM3, arXiv 2604.05433"
GF_SAM = "GF-SAM, NeurIPS 2024, tables 1 and 2"
DIFFEWS = "DiffewS, arXiv 2410.02369, tables 1 and 2"
SANSA = "SANSA, arXiv 2505.21795, tables 1 and 2"
FORIS = "FoRIS, arXiv 2609.03384"
CMAP = "CMaP-SAM, arXiv 2504.05049, abstract"
PWC = "paperswithcode, page of FSS-1000"
TRAINED, TRAINING_FREE = "trained on other classes", "training-free"


@dataclass(frozen=True)
class Published:
    """One method's figures.

    Attributes:
        method: with venue or year.
        backbone: what it stands on.
        kind: TRAINED or TRAINING_FREE.
        source: where the figures were read.
        one_shot: mean IoU in percent, or None where not reported.
        five_shot: the same with five supports.
    """

    method: str
    backbone: str
    kind: str
    source: str
    one_shot: float | None
    five_shot: float | None


FIGURES: dict[str, tuple[Published, ...]] = {
    "pascal-5i": (
        Published("DiffSeg, the paper", "Kandinsky 2.2", TRAINED, PAPER, 69.3, 72.1),
        Published("PFENet (TPAMI 2020)", "ResNet-50", TRAINED, PAPER, 60.8, 61.9),
        Published("HSNet (ICCV 2021)", "ResNet-50", TRAINED, FS_SAM2, 64.0, 69.5),
        Published("VAT (ECCV 2022)", "ResNet-50", TRAINED, PAPER, 65.5, 70.1),
        Published("DCAMA (ECCV 2022)", "Swin-B", TRAINED, FS_SAM2, 69.3, 74.9),
        Published("BAM (CVPR 2022)", "ResNet-50", TRAINED, FSS_SAM3, 67.8, 70.9),
        Published("FPTrans (NeurIPS 2022)", "DeiT-B", TRAINED, FS_SAM2, 68.8, 78.0),
        Published("MIANet (CVPR 2023)", "not stated", TRAINED, PAPER, 68.6, 71.6),
        Published("HDMNet (CVPR 2023)", "ResNet-50", TRAINED, GF_SAM, 69.4, 71.8),
        Published("AMFormer (NeurIPS 2023)", "ResNet-101", TRAINED, GF_SAM, 70.7, 73.6),
        Published("HMNet (NeurIPS 2024)", "ResNet-50", TRAINED, FSS_SAM3, 70.4, 73.9),
        Published("CMaP-SAM (2025)", "SAM", TRAINED, CMAP, 71.1, None),
        Published("VRP-SAM (CVPR 2024)", "ResNet-50, SAM-H", TRAINED, FS_SAM2, 71.9, 72.9),
        Published("FS-SAM2 (ICIAP 2025)", "SAM 2.1-B+", TRAINED, FS_SAM2, 73.4, 74.8),
        Published("FSSAM (ICML 2025)", "SAM 2", TRAINED, FSS_SAM3, 81.0, 85.4),
        Published("PerSAM (ICLR 2024)", "SAM-H", TRAINING_FREE, GF_SAM, 43.1, None),
        Published("Matcher (ICLR 2024)", "DINOv2-L, SAM-H", TRAINING_FREE, GF_SAM, 68.1, 74.0),
        Published("GF-SAM (NeurIPS 2024)", "DINOv2-L, SAM-H", TRAINING_FREE, GF_SAM, 72.1, 82.6),
        Published("FSS-SAM3 (2026)", "SAM 3, support as box", TRAINING_FREE, FSS_SAM3, 79.6, 81.2),
    ),
    "coco-20i": (
        Published("PFENet (TPAMI 2020)", "ResNet-50", TRAINED, FS_SAM2, 35.8, 39.0),
        Published("HSNet (ICCV 2021)", "ResNet-50", TRAINED, FS_SAM2, 39.2, 46.9),
        Published("VAT (ECCV 2022)", "ResNet-50", TRAINED, PAPER, 41.3, 47.9),
        Published("BAM (CVPR 2022)", "ResNet-50", TRAINED, FSS_SAM3, 46.2, 51.2),
        Published("FPTrans (NeurIPS 2022)", "DeiT-B", TRAINED, FS_SAM2, 47.0, 58.9),
        Published("MIANet (CVPR 2023)", "not stated", TRAINED, PAPER, 47.7, 51.6),
        Published("HDMNet (CVPR 2023)", "ResNet-50", TRAINED, GF_SAM, 50.0, 56.0),
        Published("DCAMA (ECCV 2022)", "Swin-B", TRAINED, FS_SAM2, 50.9, 58.3),
        Published("AMFormer (NeurIPS 2023)", "ResNet-101", TRAINED, GF_SAM, 51.0, 57.3),
        Published("DiffewS (NeurIPS 2024)", "Stable Diffusion 2.1", TRAINED, DIFFEWS, 51.2, 56.0),
        Published("HMNet (NeurIPS 2024)", "ResNet-50", TRAINED, FSS_SAM3, 52.1, 58.9),
        Published("SegIC (ECCV 2024)", "DINOv2-G", TRAINED, SANSA, 53.6, None),
        Published("VRP-SAM (CVPR 2024)", "ResNet-50, SAM-H", TRAINED, FS_SAM2, 53.9, None),
        Published("FS-SAM2 (ICIAP 2025)", "SAM 2.1-B+", TRAINED, FS_SAM2, 55.3, 58.4),
        Published("CMaP-SAM (2025)", "SAM", TRAINED, CMAP, 56.1, None),
        Published("SANSA (NeurIPS 2025)", "SAM 2-L", TRAINED, SANSA, 60.2, 64.3),
        Published("FSSAM (ICML 2025)", "SAM 2", TRAINED, FSS_SAM3, 62.3, 69.3),
        Published("PerSAM (ICLR 2024)", "SAM-H", TRAINING_FREE, GF_SAM, 23.0, None),
        Published("SAM 2, support as frame 0", "SAM 2-L", TRAINING_FREE, SANSA, 32.2, 44.2),
        Published("Matcher (ICLR 2024)", "DINOv2-L, SAM-H", TRAINING_FREE, GF_SAM, 52.7, 60.7),
        Published("GF-SAM (NeurIPS 2024)", "DINOv2-L, SAM-H", TRAINING_FREE, GF_SAM, 58.7, 66.8),
        Published("FoRIS (2026)", "DINOv3-L", TRAINING_FREE, FORIS, 60.9, None),
        Published("FSS-SAM3 (2026)", "SAM 3, support as box", TRAINING_FREE, FSS_SAM3, 66.6, 71.8),
    ),
    "coco-40-20-20": (Published("DiffSeg, the paper", "Kandinsky 2.2", TRAINED, PAPER, 48.9, 53.4),),
    "fss-1000": (
        Published("FSS-1000 baseline (CVPR 2020)", "VGG-16", TRAINED, PWC, 73.5, 80.1),
        Published("PFENet (TPAMI 2020)", "ResNet-50", TRAINED, FS_SAM2, 80.8, 81.4),
        Published("HSNet (ICCV 2021)", "ResNet-50", TRAINED, FS_SAM2, 85.5, 87.8),
        Published("VRP-SAM (CVPR 2024)", "ResNet-50, SAM-H", TRAINED, FS_SAM2, 87.7, None),
        Published("SegIC (ECCV 2024)", "DINOv2-G", TRAINED, SANSA, 88.5, None),
        Published("VAT (ECCV 2022)", "ResNet-50", TRAINED, FS_SAM2, 90.1, 90.7),
        Published("DiffewS (NeurIPS 2024)", "Stable Diffusion 2.1", TRAINED, DIFFEWS, 90.2, 90.6),
        Published("FS-SAM2 (ICIAP 2025)", "SAM 2.1-B+", TRAINED, FS_SAM2, 90.6, 91.7),
        Published("SANSA (NeurIPS 2025)", "SAM 2-L", TRAINED, SANSA, 91.4, 92.1),
        Published("PerSAM (ICLR 2024)", "SAM-H", TRAINING_FREE, GF_SAM, 71.2, None),
        Published("SAM 2, support as frame 0", "SAM 2-L", TRAINING_FREE, SANSA, 73.0, 84.3),
        Published("Matcher (ICLR 2024)", "DINOv2-L, SAM-H", TRAINING_FREE, GF_SAM, 87.0, 89.6),
        Published("GF-SAM (NeurIPS 2024)", "DINOv2-L, SAM-H", TRAINING_FREE, GF_SAM, 88.0, 88.9),
    ),
}
# Of folds 0 to 3, where the source prints them: with one support, and with five.
FOLDS = {
    ("pascal-5i", "DiffSeg, the paper"): ((70.5, 75.8, 67.9, 63.2), (72.8, 77.6, 68.7, 69.3)),
    ("pascal-5i", "PFENet (TPAMI 2020)"): ((61.7, 69.5, 55.4, 56.3), (63.1, 70.7, 55.8, 57.9)),
    ("pascal-5i", "VAT (ECCV 2022)"): ((67.6, 72.0, 62.3, 60.1), (72.4, 73.6, 68.6, 65.7)),
    ("pascal-5i", "MIANet (CVPR 2023)"): ((68.5, 75.7, 67.4, 63.1), (70.2, 77.3, 70.0, 68.8)),
    ("coco-20i", "VAT (ECCV 2022)"): ((39.1, 42.7, 42.9, 40.5), (46.5, 47.3, 48.0, 49.7)),
    ("coco-20i", "MIANet (CVPR 2023)"): ((42.7, 52.9, 47.8, 47.4), (45.8, 58.2, 51.3, 51.9)),
    ("coco-40-20-20", "DiffSeg, the paper"): ((45.2, 54.1, 47.9, 48.3), (50.7, 58.9, 51.6, 52.4)),
}


def published_figures(
    dataset: str, split: str, shots: int, fold: int | None
) -> list[tuple[Published, float]]:
    """What was published for exactly this protocol, best last; empty where nothing can be compared.

    Args:
        dataset: a key of `datasets.PROTOCOLS`.
        split: only "test" is published.
        shots: 1 or 5; nothing is published for others.
        fold: None for all folds together.
    """
    place = {1: 0, 5: 1}.get(shots)
    if split != "test" or place is None:
        return []
    found = []
    for row in FIGURES.get(dataset, ()):
        value = (row.one_shot, row.five_shot)[place]
        if fold is not None:
            folds = FOLDS.get((dataset, row.method))
            value = folds[place][fold] if folds else None
        if value is not None:
            found.append((row, value))
    return sorted(found, key=lambda pair: pair[1])
