"""Judge the presence score of a checkpoint on held-out classes and draw its reliability curve.

    python -m tools.plot_presence --root data/fewshot --out docs/presence.png

Half of the episodes lack the object. Each half of the classes is scored by a fit on the other half, so no
episode is judged by a score it was fitted on. Nothing is written into the checkpoint.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.datasets.episode import read_folder
from diffseg_cli.evaluation.summary import class_groups
from diffseg_cli.training.feature_cache import FeatureCache
from diffseg_cli.training.plots import write_reliability
from diffseg_cli.training.presence_fit import calibrate, presence_report, reliability, sample_presence


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of classes with index.csv")
    parser.add_argument("--out", type=Path, required=True, help="the image")
    parser.add_argument("--checkpoint", type=Path, help="default the shipped one")
    parser.add_argument("--split", default="val")
    parser.add_argument("--sources", default="voc,coco_mini")
    parser.add_argument("--episodes", type=int, default=520)
    parser.add_argument("--cache", type=Path, help="of frozen results; default a temporary one")
    options = parser.parse_args()
    segmenter = load_segmenter(checkpoint=options.checkpoint)
    dataset = read_folder(options.root, split=options.split, sources=options.sources.split(","))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.cache or Path(temporary)
        cache = FeatureCache(folder, dataset, segmenter.backbone, segmenter.hed, views=1)
        for done, rows in cache.build():
            if done % 80 == 0:
                print(f"{done}/{rows}", file=sys.stderr, flush=True)
        sample = sample_presence(segmenter, cache, episodes=options.episodes)
    _, scores = calibrate(sample)
    rows_of = reliability(scores, sample.present)
    write_reliability(rows_of, options.out)
    figures = presence_report(scores, sample, class_groups(dataset.classes))
    print(json.dumps({"episodes": options.episodes, **figures, "reliability": rows_of}))


if __name__ == "__main__":
    main()
