"""The wheel: every module and every weight file is in it, and it works without the clone."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "diffseg_cli", "weights")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree, so that the build leaves nothing in it."""
    clone, dist = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, clone / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        dist,
    ]
    done = subprocess.run(build, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(dist.glob("*.whl"))


def test_wheel_carries_every_module_and_every_weight_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        modules = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("diffseg_cli/**/*.py")}
        assert {name for name in names if name.endswith(".py")} == modules
        assert {"diffseg_cli/py.typed", "diffseg_cli/serve/page.html"} <= names
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
    load = "from diffseg_cli.models.hed import load_hed; print(load_hed().block1.convs[0].weight.shape)"
    done = subprocess.run(
        [python, "-c", load], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "torch.Size([64, 3, 3, 3])\n", done.stderr
