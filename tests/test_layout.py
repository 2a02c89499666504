"""The shape of the package: who may import whom, help without heavy imports, file trees and links."""

import ast
import json
import re
import resource
import subprocess
import sys

import pytest
from repository import REPOSITORY, tracked_files
from typer.main import get_command

from diffseg_cli.cli.main import app

PACKAGE = REPOSITORY / "diffseg_cli"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("**/*.py"))

# A module imports only from lower ranks; modules of one folder also from each other. A folder stands for all
# in it. A new module must be given its rank here.
RANKS = {
    "errors.py": 0,
    "timing.py": 0,
    "version.py": 0,
    "config.py": 0,
    "choices/": 0,
    "choices/training.py": 1,
    "remote.py": 1,
    "files.py": 1,
    "refine.py": 0,
    "specks.py": 1,
    "zoom.py": 1,
    "views.py": 0,
    "reading/": 1,
    "results/": 2,
    "results/formats.py": 0,
    "compute.py": 3,
    "frames.py": 3,
    "datasets/": 3,
    "models/": 3,
    "weights/": 4,
    "prediction.py": 5,
    "presence.py": 6,
    "trained.py": 7,
    "loading.py": 8,
    "edges.py": 8,
    "losses.py": 9,
    "method.py": 9,
    "adaptation.py": 10,
    "segmenter.py": 11,
    "assembly.py": 12,
    "attention_dump.py": 12,
    "supports/": 12,
    "finding.py": 13,
    "evaluation/": 13,
    "batch/": 14,
    "doctor.py": 14,
    "training/": 14,
    "bench/": 14,
    "labelling/": 15,
    "serve/": 16,
    "cli/": 17,
}
TORCH_FROM = 3  # lower ranks know arrays and pictures, not tensors
DOORS = ("__init__.py", "__main__.py")  # the package's own: lazy names and `python -m`
TORCH_SIDE = {
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "safetensors",
    "huggingface_hub",
    "accelerate",
}
HEAVY = (*TORCH_SIDE, "numpy", "PIL", "cv2")


def rank(module: str) -> int:
    return RANKS.get(module, RANKS.get(f"{module.split('/')[0]}/", -1))


def imports(module: str, *, top_level_only: bool = False) -> list[str]:
    """Dotted names a module imports: everywhere in it, or only where importing it runs them."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    found = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if top_level_only and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ):
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            assert node.module
            # `from diffseg_cli import x` may mean the module x
            found += [
                f"{node.module}.{a.name}" if node.module == "diffseg_cli" else node.module for a in node.names
            ]
        pending += ast.iter_child_nodes(node)
    return sorted(set(found))


def own_module(dotted: str) -> str | None:
    """The file inside the package that `diffseg_cli.x.y` means; None for anything outside it."""
    first, *rest = dotted.split(".")
    if first != "diffseg_cli" or not rest:
        return None
    path = "/".join(rest)
    return f"{path}.py" if f"{path}.py" in MODULES else f"{path}/__init__.py"


@pytest.mark.parametrize("module", [name for name in MODULES if name not in DOORS])
def test_imports_go_downwards(module: str) -> None:
    assert rank(module) >= 0, f"{module} has no rank yet: add it to RANKS"
    for dotted in imports(module):
        imported = own_module(dotted)
        if imported is None or imported.split("/")[0] == "__init__.py":
            continue
        together = "/" in module and module.split("/")[0] == imported.split("/")[0]
        assert together or rank(imported) < rank(module), f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_outside_packages_stay_in_their_rooms(module: str) -> None:
    everywhere = {dotted.split(".")[0] for dotted in imports(module)}
    assert "click" not in everywhere, "Typer has its own copy: see its exceptions"
    if not module.startswith("cli/"):
        assert not everywhere & {"typer", "rich"}, "only cli/ talks to the terminal"
    if module.startswith("models/"):
        assert not everywhere & {"pathlib", "os", "io", "json", "safetensors", "huggingface_hub"}, "no files"
    if rank(module) < TORCH_FROM:
        assert not everywhere & TORCH_SIDE
    if module.startswith("cli/"):
        at_once = imports(module, top_level_only=True)
        assert not {dotted.split(".")[0] for dotted in at_once} & set(HEAVY)
        own = [name for name in map(own_module, at_once) if name and not name.startswith("choices/")]
        assert not [name for name in own if 0 < rank(name) < RANKS["cli/"]], "import inside the command"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_prints_or_exits(module: str) -> None:
    if module.startswith("cli/"):
        return
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    as_script = [n for n in tree.body if isinstance(n, ast.If) and "__name__" in ast.unparse(n.test)]
    allowed = {id(inner) for node in as_script for inner in ast.walk(node)}
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and id(n) not in allowed]
    assert not [n.lineno for n in calls if ast.unparse(n.func) in ("print", "sys.exit", "exit")]


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_over_400_lines(module: str) -> None:
    assert len((PACKAGE / module).read_text(encoding="utf-8").splitlines()) <= 400


EVERY_HELP = """
import json, sys
from typer.main import get_command
from diffseg_cli.cli.main import app

def walk(command, words):
    yield words
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, [*words, name])

seen = {}
for words in walk(get_command(app), []):
    try:
        app([*words, "--help"])
    except SystemExit as leaving:
        assert not leaving.code, words
    seen[" ".join(words)] = [name for name in sys.argv[1:] if name in sys.modules]
print(json.dumps(seen), file=sys.stderr)
"""


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP, *HEAVY], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stderr.splitlines()[-1])
    assert {"", "segment", "attn", "edges", "models", "models list", "models pull"} <= set(loaded)
    assert {verb: names for verb, names in loaded.items() if names} == {}
    assert done.stdout.count("Usage:") == len(loaded)


def test_help_answers_fast() -> None:
    """Processor time, not wall time: what else runs on the machine does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "diffseg_cli", "--help"], cwd=REPOSITORY, capture_output=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.8


def file_tree(page: str) -> list[str]:
    """Paths in the file tree of a page; an indented line lies in the folder above it."""
    block = (REPOSITORY / page).read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in block.splitlines():
        words = line.split()
        if not words:
            continue
        depth = len(line) - len(line.lstrip())
        folders = [(deep, folder) for deep, folder in folders if deep < depth]
        path = (folders[-1][1] if folders else "") + words[0]
        paths.append(path)
        if path.endswith("/"):
            folders.append((depth, path))
    return paths


@pytest.mark.parametrize("page", ["README.md", "docs/code.md"])
def test_file_tree_names_what_is_there_and_every_folder(page: str) -> None:
    listed = file_tree(page)
    assert [path for path in listed if not (REPOSITORY / path).exists()] == []
    folders = {f"{path.split('/')[0]}/" for path in tracked_files() if "/" in path}
    assert {folder for folder in folders if not folder.startswith(".")} - set(listed) == set()
    assert len(listed) == len(set(listed))


def test_file_tree_of_the_code_names_every_module() -> None:
    named = {f"diffseg_cli/{module}" for module in MODULES if not module.endswith(DOORS)}
    assert named - set(file_tree("docs/code.md")) == set()


def test_links_of_the_documentation_lead_somewhere() -> None:
    pages = [REPOSITORY / path for path in tracked_files() if path.endswith(".md")]
    broken = []
    for page in pages:
        links = re.findall(r"\]\(<?([^)#>\s]+)", page.read_text(encoding="utf-8"))
        own = [link for link in links if not link.startswith(("http:", "https:"))]
        broken += [f"{page.name}: {link}" for link in own if not (page.parent / link).exists()]
    assert broken == []


def documented_commands() -> list[tuple[str, str]]:
    """Page and words of every `diffseg ...` in the documentation, in code blocks and within lines."""
    found = []
    for path in tracked_files():
        if path == "README.md" or path.startswith("docs/"):
            text = (REPOSITORY / path).read_text(encoding="utf-8") if path.endswith(".md") else ""
            text = text.replace("\\\n", " ")
            lines = re.findall(r"^(?: {4}|\$ )?(?:[A-Z_]+=\S+ )*diffseg ([^\n|>]+)", text, re.MULTILINE)
            found += [(path, words) for words in [*lines, *re.findall(r"`diffseg ([^`|>]+)`", text)]]
    return found


def test_documented_commands_and_their_options_exist() -> None:
    top = get_command(app)
    unknown = []
    for page, words in documented_commands():
        command, rest = top, words.split()
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        known = {"--help"} | {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        asked = {word.strip("[].,:").partition("=")[0] for word in rest if re.match(r"\[?--?[a-z]", word)}
        if asked - known or (command is top and not asked):
            unknown.append((page, words, asked - known))
    assert unknown == []


def test_readme_fits_on_two_screens_and_names_every_verb() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    table = readme.split("| verb |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(.+?)`", row)}
    assert named == set(get_command(app).commands)
