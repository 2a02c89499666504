"""Where Kandinsky's files are found, what is said when they are not, and the download.

Nothing leaves this machine: the hub is a small server below, or the cache is made by hand.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import tiny_kandinsky as tiny

from diffseg_cli.errors import ExitCode, WeightsError
from diffseg_cli.weights.hub import (
    COMPONENTS,
    KANDINSKY,
    REPOSITORIES,
    locate_kandinsky,
    pull_kandinsky,
    search_kandinsky,
)

REPOSITORY = Path(__file__).parents[1]
COMMIT, BRANCH_COMMIT = "a" * 40, "b" * 40


def find_kandinsky() -> Path | None:
    """Folder of the decoder in the cache, or None while any component is missing."""
    found, lacking = search_kandinsky()
    return None if lacking else found["unet"].config.parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("kandinsky"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def snapshot(cache: Path, repository: str, commit: str = COMMIT) -> Path:
    return cache / f"models--kandinsky-community--kandinsky-2-2-{repository}" / "snapshots" / commit


def refused(source: str | Path = KANDINSKY) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        locate_kandinsky(source)
    assert caught.value.exit_code == ExitCode.WEIGHTS
    assert caught.value.hint and f"diffseg models pull {KANDINSKY}" in caught.value.hint
    return caught.value


# --- a folder


@pytest.mark.parametrize("layout", ["as built", "as cloned", "side by side"])
def test_a_folder_may_be_laid_out_in_three_ways(folder: Path, tmp_path: Path, layout: str) -> None:
    homes = {
        "as built": ("decoder", "prior"),
        "as cloned": ("kandinsky-2-2-decoder", "kandinsky-2-2-prior"),
        "side by side": (".", "."),
    }[layout]
    for repository, home in zip(("decoder", "prior"), homes, strict=True):
        shutil.copytree(folder / repository, tmp_path / "k" / home, dirs_exist_ok=True)
    found = locate_kandinsky(tmp_path / "k")
    assert set(found) == {component.name for component in COMPONENTS}
    for component in COMPONENTS:
        assert (
            found[component.name].config.is_file()
            and found[component.name].config.parent.name == component.name
        )
        assert len(found[component.name].weights) == (component.weights is not None)


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_every_missing_part_is_named(folder: Path, tmp_path: Path, component: Any) -> None:
    copy = shutil.copytree(folder, tmp_path / "k")
    home = copy / component.repository / component.name
    if component.weights is not None:
        (home / f"{component.weights}.safetensors").unlink()
        assert refused(copy).message.endswith(f"lacks {component.name}/{component.weights}.safetensors.")
    else:
        (home / component.config).unlink()
        assert refused(copy).message.endswith(f"lacks {component.name}/{component.config}.")
    shutil.rmtree(home)
    assert refused(copy).message == f"Kandinsky 2.2 is not complete in {copy}: it lacks {component.name}."


def test_a_folder_that_is_not_there_lacks_everything(tmp_path: Path) -> None:
    message = refused(tmp_path / "nowhere").message
    assert message.endswith("it lacks unet, movq, scheduler, image_encoder, image_processor.")


def test_full_precision_goes_before_fp16_and_fp16_before_nothing(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "k")
    plain = copy / "decoder" / "unet" / "diffusion_pytorch_model.safetensors"
    half = plain.with_name("diffusion_pytorch_model.fp16.safetensors")
    shutil.copy(plain, half)
    assert locate_kandinsky(copy)["unet"].weights == (plain,)
    plain.unlink()
    assert locate_kandinsky(copy)["unet"].weights == (half,)


@pytest.mark.parametrize("damage", ["shard", "index", "none"])
def test_shards_count_when_all_are_there(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "k")
    home = copy / "prior" / "image_encoder"
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in names:
        shutil.copy(home / "model.safetensors", home / name)
    (home / "model.safetensors").unlink()
    index = home / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": names[1], "a": names[0], "c": names[0]}}))
    if damage == "none":
        assert locate_kandinsky(copy)["image_encoder"].weights == tuple(home / name for name in names)
        return
    if damage == "shard":
        (home / names[1]).unlink()
    else:
        index.write_text("[1, 2")
    assert refused(copy).message.endswith("lacks image_encoder/model.safetensors.")


# --- the Hugging Face cache


def test_an_empty_cache_says_where_it_looked(cache: Path) -> None:
    assert find_kandinsky() is None
    assert f"not complete in {cache}: it lacks unet, movq" in refused().message


def test_a_whole_cache_is_found_and_a_partial_one_is_not(folder: Path, cache: Path) -> None:
    shutil.copytree(folder / "decoder", snapshot(cache, "decoder"))
    assert find_kandinsky() is None
    assert refused().message.endswith("it lacks image_encoder, image_processor.")
    shutil.copytree(folder / "prior", snapshot(cache, "prior"))
    assert find_kandinsky() == snapshot(cache, "decoder")
    (snapshot(cache, "prior") / "image_encoder" / "model.safetensors").unlink()
    assert find_kandinsky() is None


def test_of_several_revisions_the_newest_whole_one_is_taken(folder: Path, cache: Path) -> None:
    shutil.copytree(folder / "prior", snapshot(cache, "prior"))
    for age, commit in enumerate("abc"):
        shutil.copytree(folder / "decoder", snapshot(cache, "decoder", commit * 40))
        os.utime(snapshot(cache, "decoder", commit * 40), (1000 + age, 1000 + age))
    assert find_kandinsky() == snapshot(cache, "decoder", "c" * 40)
    shutil.rmtree(snapshot(cache, "decoder", "c" * 40) / "movq")  # a download that broke off
    assert find_kandinsky() == snapshot(cache, "decoder", "b" * 40)


def test_looking_for_files_imports_no_torch() -> None:
    code = (
        "import sys; from diffseg_cli.weights.hub import search_kandinsky; search_kandinsky();"
        "print([name for name in ('torch', 'numpy', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# --- the download


class Hub(ThreadingHTTPServer):
    """As much of the Hugging Face hub as its client asks for.

    Attributes:
        files: of each repository, by path.
        served: paths of the files that were sent.
        dropped: path of a file whose first sending breaks off after 1000 bytes.
        portal: when not empty, the answer to everything.
    """

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.served, self.dropped, self.portal = files, list[str](), "", b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.server.portal:
            self.reply(200, self.server.portal)
            return
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        if words[0] == "api":
            name, revision = "/".join(words[2:4]), words[5] if len(words) > 5 else "main"
            files = self.server.files[name]
            commit = {"main": COMMIT, "branch": BRANCH_COMMIT}.get(
                revision, revision if revision in (COMMIT, BRANCH_COMMIT) else None
            )
            if commit is None:
                self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif len(words) > 4 and words[4] == "tree":
                rows = [
                    {"type": "file", "path": path, "size": len(content), "oid": f"{len(content)}"}
                    for path, content in files.items()
                ]
                self.reply(200, json.dumps(rows).encode())
            else:
                siblings = [{"rfilename": path} for path in files]
                self.reply(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())
            return
        content = self.server.files["/".join(words[:2])].get("/".join(words[4:]))
        if content is None:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{len(content)}"', "X-Repo-Commit": words[3]}
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        sent = len(content)
        if self.command == "GET":
            name = "/".join(words[4:])
            self.server.served.append(name)
            if self.server.dropped == name:
                self.server.dropped, sent = "", 1000
        self.reply(206 if start else 200, content[start:], headers, sent)

    def reply(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:sent])


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    """The two repositories with what else lies in them."""
    files = {
        address: {
            path.relative_to(folder / repository).as_posix(): path.read_bytes()
            for path in sorted((folder / repository).rglob("*"))
            if path.is_file()
        }
        for repository, address in REPOSITORIES.items()
    }
    for more in (
        "model_index.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "text_encoder/model.safetensors",
    ):
        files[REPOSITORIES["decoder"]][more] = b"not needed"
    server = Hub(files)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


PULL = """
import json, sys
from diffseg_cli.errors import DiffsegError
from diffseg_cli.weights.hub import pull_kandinsky
try:
    print(pull_kandinsky(**json.loads(sys.argv[1])))
except DiffsegError as error:
    print(error.message, error.hint, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def pull(
    endpoint: str, cache: Path, *, offline: bool = False, **arguments: str
) -> subprocess.CompletedProcess[str]:
    """`pull_kandinsky` in a process of its own: the library reads its settings when it is imported."""
    environment = {
        **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
        "HF_ENDPOINT": endpoint,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", PULL, json.dumps(arguments)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_pull_fetches_what_is_needed_once(hub: Hub, cache: Path) -> None:
    done = pull(hub.url, cache)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(snapshot(cache, "decoder")) == str(find_kandinsky())
    assert sorted(hub.served) == [
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "image_processor/preprocessor_config.json",
        "movq/config.json",
        "movq/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    hub.served.clear()
    assert pull(hub.url, cache).returncode == 0
    assert hub.served == []


def test_a_dropped_connection_and_a_lost_file_are_made_good(hub: Hub, cache: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    hub.dropped = name
    done = pull(hub.url, cache)
    if done.returncode:  # huggingface-hub 0.x leaves the second attempt to the user
        assert "run it again" in failed(done)
        assert pull(hub.url, cache).returncode == 0
    assert [path for path in hub.served if path == name] == [name, name]
    fetched = snapshot(cache, "decoder") / name
    assert fetched.read_bytes() == hub.files[REPOSITORIES["decoder"]][name]
    fetched.resolve().unlink()
    assert find_kandinsky() is None
    hub.served.clear()
    assert pull(hub.url, cache).returncode == 0
    assert hub.served == [name]
    assert find_kandinsky() == snapshot(cache, "decoder")


def test_the_revision_pulled_last_is_the_one_loaded(hub: Hub, cache: Path) -> None:
    assert pull(hub.url, cache, revision="branch").returncode == 0
    assert find_kandinsky() == snapshot(cache, "decoder", BRANCH_COMMIT)
    assert pull(hub.url, cache).returncode == 0
    assert find_kandinsky() == snapshot(cache, "decoder", COMMIT)
    assert pull(hub.url, cache, revision="branch").returncode == 0
    assert find_kandinsky() == snapshot(cache, "decoder", BRANCH_COMMIT)


def test_fp16_is_taken_where_the_hub_has_it(hub: Hub, cache: Path) -> None:
    decoder = hub.files[REPOSITORIES["decoder"]]
    for component in ("unet", "movq"):
        plain = f"{component}/diffusion_pytorch_model.safetensors"
        decoder[plain.replace(".safe", ".fp16.safe")] = decoder[plain]
    assert pull(hub.url, cache, variant="fp16").returncode == 0
    weights = [path for path in hub.served if path.endswith(".safetensors")]
    assert sorted(weights) == [
        "image_encoder/model.safetensors",
        "movq/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert find_kandinsky() is not None


def test_shards_are_fetched_with_their_index(hub: Hub, cache: Path) -> None:
    prior = hub.files[REPOSITORIES["prior"]]
    whole = prior.pop("image_encoder/model.safetensors")
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    prior |= {f"image_encoder/{shard}": whole for shard in shards}
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    prior["image_encoder/model.safetensors.index.json"] = json.dumps(index).encode()
    assert pull(hub.url, cache).returncode == 0
    found = find_kandinsky()
    assert found is not None and len(list((snapshot(cache, "prior") / "image_encoder").iterdir())) == 4


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed pull says, on one line."""
    assert done.returncode == 4 and done.stdout == "" and "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_pull_without_a_network_says_what_else_can_be_done(cache: Path) -> None:
    said = failed(pull("http://127.0.0.1:9", cache))
    assert "cannot be fetched from the Hugging Face hub" in said
    assert "Check the network" in said and "--model PATH" in said


def test_a_login_page_in_place_of_the_hub_is_no_traceback(hub: Hub, cache: Path) -> None:
    hub.portal = b"<html>Welcome to the hotel</html>"
    assert "Check the network" in failed(pull(hub.url, cache))


def test_a_full_disk_is_named_with_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fill(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fill)
    with pytest.raises(WeightsError) as caught:
        pull_kandinsky()
    assert caught.value.message == f"{cache} cannot be written: No space left on device."


def test_pull_in_offline_mode_says_so(cache: Path) -> None:
    said = failed(pull("http://127.0.0.1:9", cache, offline=True))
    assert "HF_HUB_OFFLINE is set" in said and "--model PATH" in said


def test_pull_of_what_the_hub_lacks_says_what(hub: Hub, cache: Path) -> None:
    assert "no revision 'v9'" in failed(pull(hub.url, cache, revision="v9"))
    assert "no fp16 files" in failed(pull(hub.url, cache, variant="fp16"))
    assert hub.served == []
    del hub.files[REPOSITORIES["decoder"]]["movq/diffusion_pytorch_model.safetensors"]
    said = failed(pull(hub.url, cache))
    assert "kandinsky-2-2-decoder on the hub holds no movq/diffusion_pytorch_model.safetensors" in said


def test_pull_into_a_cache_that_cannot_be_written_names_it(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = failed(pull(hub.url, tmp_path / "file" / "cache"))
    assert "cannot be written" in said and "HF_HOME" in said
