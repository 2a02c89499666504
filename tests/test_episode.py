"""Episodes are a pure function of their arguments, and folders are read as people have them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffseg_cli.datasets.episode import (
    FewShotDataset,
    Sample,
    draw_episode,
    draw_set,
    group_by_class,
    read_folder,
)
from diffseg_cli.errors import InputError


def dataset(sizes: dict[str, int]) -> FewShotDataset:
    return group_by_class(
        Sample(Path(f"{name}/{i}.jpg"), Path(f"{name}/{i}.png"), name)
        for name, n in sizes.items()
        for i in range(n)
    )


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.dictionaries(st.sampled_from("abcdef"), st.integers(3, 9), min_size=1),
    index=st.integers(0, 5000),
    seed=st.integers(0, 99),
    shots=st.integers(1, 2),
)
def test_episode_is_pure_and_its_pictures_distinct(sizes: dict, index: int, seed: int, shots: int) -> None:
    data = dataset(sizes)
    episode = draw_episode(data, index, shots=shots, seed=seed)
    assert episode == draw_episode(dataset(dict(reversed(sizes.items()))), index, shots=shots, seed=seed)
    assert len({episode.query, *episode.support}) == shots + 1
    assert {data.samples[i].class_name for i in (episode.query, *episode.support)} == {episode.class_name}
    assert episode.class_name == data.classes[index % len(data.classes)]


def test_queries_of_a_set_follow_each_other_and_are_none_of_its_supports() -> None:
    data = dataset({"a": 9, "b": 7, "c": 4})
    sets = [draw_set(data, place, shots=2, seed=3, queries=5) for place in range(6)]
    for place, episodes in enumerate(sets):
        (support,) = {episode.support for episode in episodes}
        assert len(episodes) == (5, 5, 2)[place % 3]  # the last class has no more images
        assert len({*support, *(episode.query for episode in episodes)}) == 2 + len(episodes)
        assert {episode.class_name for episode in episodes} == {"abc"[place % 3]}
    assert sets[0][0].support != sets[3][0].support


def test_seeds_differ_and_small_classes_are_left_out() -> None:
    data = dataset({"a": 9, "b": 2})
    assert data.with_enough(2).classes == ["a"]
    lists = [[draw_episode(data, i, shots=1, seed=seed) for i in range(20)] for seed in (0, 1)]
    assert lists[0] != lists[1]


def write_pair(folder: Path, stem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / f"{stem}.jpg")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / f"{stem}.png")


def test_plain_folder(tmp_path: Path) -> None:
    for stem in ("1", "2"):
        write_pair(tmp_path / "dog", stem)
    write_pair(tmp_path / "cat", "x")
    (tmp_path / "cat" / "without_mask.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a class")
    data = read_folder(tmp_path)
    assert {name: len(indices) for name, indices in data.by_class.items()} == {"cat": 1, "dog": 2}


def test_index_with_splits(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text(
        "source,class,id,also_in_image,split\nvoc,dog,1,cat|bus,train\n"
        "voc,cat,2,,val\ncoco,dog,3,cat tie,train\n"
    )
    train = read_folder(tmp_path, split="train")
    assert train.classes == ["coco/dog", "voc/dog"]
    assert [sample.present for sample in train.samples] == [("cat", "tie"), ("cat", "bus")]
    assert train.samples[1].mask == tmp_path / "voc" / "dog" / "1.png"
    assert read_folder(tmp_path, split="train", sources=("voc",)).classes == ["voc/dog"]


def test_an_image_without_a_class_lacks_it_under_every_spelling() -> None:
    names = ["coco/airplane", "coco/dog", "pets/Cats", "voc/aeroplane", "voc/pottedplant", "voc/glass"]
    known = {"coco/dog": ("potted_plant",), "pets/Cats": ("TV",), "voc/pottedplant": ("aeroplane", "cat")}
    data = group_by_class(Sample(Path(n), Path(n), n, known.get(n, ())) for n in names)

    def without(name: str, source: str = "") -> list[str]:
        return [data.samples[index].class_name for index in data.without(name, source=source)]

    assert without("airplane") == ["coco/dog", "pets/Cats", "voc/glass"]
    assert without("any/cat") == ["coco/airplane", "coco/dog", "voc/aeroplane", "voc/glass"]
    assert without("potted plant", "coco/") == ["coco/airplane"]
    assert "pets/Cats" not in without("tvmonitor")
    assert without("glas") == sorted(names, key=str)  # another word than "glass"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no image with a mask"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match=r"index\.csv was not found"):
        read_folder(tmp_path, split="train")
