"""The packages: what the wheel and the source archive hold, what they say, and that they work alone."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
from repository import REPOSITORY, tracked_files

from tools.lowest_versions import LOWEST

BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # setuptools puts arguments of its own there
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, built from a copy of the tree, so that the build leaves nothing in it."""
    clone, dist = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for name in tracked_files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, clone / name)
    done = subprocess.run([sys.executable, "-c", BUILD, dist], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return dist


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


def test_source_archive_holds_the_whole_repository(dist: Path) -> None:
    """Its tests read examples, documentation, tools and benchmarks."""
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {
        name for name in names if name in ("PKG-INFO", "setup.cfg") or name.startswith("diffseg.egg-info/")
    }
    assert names - made == set(tracked_files())


def test_metadata_names_every_licence_and_carries_its_text(wheel: Path, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT"
    rows = json.loads((REPOSITORY / "weights" / "manifest.json").read_text())["files"]
    assert {row["licence"] for row in rows} == {"Apache-2.0", "MIT"}
    with zipfile.ZipFile(wheel) as archive:
        for text in ("LICENSE", "weights/hed/LICENSE"):
            assert text in metadata.get_all("License-File", [])
            name = next(name for name in archive.namelist() if name.endswith(f"dist-info/licenses/{text}"))
            assert archive.read(name) == (REPOSITORY / text).read_bytes()


def test_the_environment_of_lowest_versions_is_what_the_metadata_allows(metadata: Message) -> None:
    needs = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    bounds = dict(re.fullmatch(r"([\w-]+).*>=([\d.]+).*", text).groups() for text in needs)  # type: ignore[union-attr]
    assert bounds.keys() == LOWEST.keys()
    assert all(f"{LOWEST[name]}.".startswith(f"{bound}.") for name, bound in bounds.items())


def test_package_page_needs_no_repository(metadata: Message) -> None:
    """A package page shows the README; a link to a file of the repository would lead nowhere there."""
    page = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert page.startswith("# diffseg") and "## From Python" in page and "more (`docs/batch.md`)" in page
    links = [part.partition(")")[0] for part in page.split("](")[1:]]
    assert [link for link in links if not link.startswith("https:")] == []


def test_wheel_carries_every_module_and_every_weight_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        modules = {name for name in tracked_files() if name.startswith("diffseg") and name.endswith(".py")}
        assert {name for name in names if name.endswith(".py")} == modules
        assert {"diffseg/py.typed", "diffseg_cli/py.typed", "diffseg_cli/serve/web/search/main.js"} <= names
        folder = REPOSITORY / "weights"
        shipped = {path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file()}
        assert {f"diffseg_cli/_weights/{name}" for name in shipped} <= names
        manifest = json.loads(archive.read("diffseg_cli/_weights/manifest.json"))
        for row in manifest["files"]:
            content = archive.read(f"diffseg_cli/_weights/{row['file']}")
            assert hashlib.sha256(content).hexdigest() == row["sha256"], row["file"]


def test_every_shipped_network_has_its_licence_beside_it() -> None:
    manifest = json.loads((REPOSITORY / "weights" / "manifest.json").read_text())
    for row in manifest["files"]:
        assert row["licence"] and row["source"] and row["what"] and row["trained_on"], row["file"]
        if row["licence"] != "Apache-2.0":  # the licence of the project itself
            assert (REPOSITORY / "weights" / row["file"]).with_name("LICENSE").is_file(), row["file"]


@pytest.mark.nightly
def test_installed_wheel_works_without_the_clone(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own that borrows only the dependencies, from a folder of its own."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel], check=True)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DIFFSEG_WEIGHTS")
    }
    done = subprocess.run(
        [python.with_name("diffseg"), "models", "verify", "--json"],
        cwd=elsewhere, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows and {row["status"] for row in rows} == {"ok"}
    assert {Path(row["path"]).is_relative_to(site / "diffseg_cli" / "_weights") for row in rows} == {True}
    load = "from diffseg_cli.weights.edge_detectors import load_hed as load; print(load().norm.shape)"
    done = subprocess.run(
        [python, "-c", load], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "torch.Size([1, 3, 1, 1])\n", done.stderr


def test_the_package_answers_to_its_own_name() -> None:
    """`import diffseg` is what people expect of `pip install diffseg`; nothing is imported twice for it."""
    code = """
import sys
import diffseg
assert "torch" not in sys.modules
import diffseg_cli
assert sorted(dir(diffseg)) == sorted(diffseg_cli.__all__)
assert all(getattr(diffseg, name) is getattr(diffseg_cli, name) for name in diffseg.__all__)
assert not [name for name in sys.modules if name.startswith("diffseg.")]
try:
    diffseg.segmentor
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "module 'diffseg' has no attribute 'segmentor'\n", done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "diffseg", "--version"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
