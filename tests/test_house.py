"""The order of the house: who may import whom, a map that is true, nothing of anyone's machine in the files."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "smoe_cli").rglob("*.py"))
MAP = ROOT / "docs" / "map.md"
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").glob("*/*.md")])

LEVELS = [
    ["errors"],
    ["tags", "presets", "text"],
    ["corpus_settings", "train_settings"],
    ["config"],
    ["recipe"],
    ["cluster", "routing", "records", "watch", "html", "layout", "steps", "bandwidth", "transforms", "containers"],
    ["manifests", "audio", "features", "tokenizer", "model", "loss", "corpora", "telephone"],
    ["cuts", "checkpoint"],
    ["cut_table", "augmentation", "feature_store"],
    ["batching", "upcycling", "slimming", "vocabulary", "counting", "conversion"],
    ["validation"],
    ["listening", "pack_part"],
    ["band_check"],
    ["gathering"],
    ["preparation", "training", "decoding", "scoring", "audit", "exporting", "packing"],
    ["making_ready", "handing_on", "pipeline"],
    ["cli", "__main__"],
]
"""Low to high: a module imports from lower levels; from its own only where that makes no circle."""
RANK = {name: rank for rank, names in enumerate(LEVELS) for name in names}
LIGHT = [name for names in LEVELS[:6] for name in names]


def part_of(path: Path) -> str:
    """The module or sub-package of `smoe_cli` that a file belongs to."""
    return path.relative_to(ROOT / "smoe_cli").parts[0].removesuffix(".py")


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node, inside functions too, except what only a type checker reads."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from nodes(child)


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a file imports; `from a import b` counts as `a.b`."""
    names = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def ours(path: Path) -> set[str]:
    """Other parts of `smoe_cli` that a file imports."""
    parts = {name.split(".")[1] for name in imports(path) if name.startswith("smoe_cli.")}
    return parts - {"__version__", part_of(path)}


def libraries(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def files_of(parts: list[str]) -> list[Path]:
    return [path for path in FILES if part_of(path) in parts]


def everything_below(parts: list[str]) -> set[str]:
    """Parts that are reached from these by any chain of imports, themselves included."""
    reached, waiting = set(), list(parts)
    while waiting:
        part = waiting.pop()
        if part not in reached:
            reached.add(part)
            waiting += {name for path in files_of([part]) for name in ours(path)}
    return reached


def test_every_part_has_its_level():
    parts = {part_of(path) for path in FILES} - {"__init__"}
    assert len(FILES) >= 65
    assert parts <= RANK.keys(), f"give these a level in {Path(__file__).name}: {sorted(parts - RANK.keys())}"


def test_nobody_imports_upward():
    for path in FILES:
        upward = [name for name in ours(path) if RANK[name] > RANK.get(part_of(path), -1)]
        assert not upward, f"{path.relative_to(ROOT)} imports {upward}, which stands above it"


def test_no_circle_among_the_parts():
    TopologicalSorter({part: {name for path in files_of([part]) for name in ours(path)} for part in RANK}).prepare()


def test_the_light_parts_load_neither_torch_nor_lhotse():
    light = files_of(LIGHT)
    assert len(light) >= 9
    for path in light:
        assert not libraries(path) & {"torch", "torchaudio", "lhotse"}, path


def test_scoring_never_reaches_torch_or_lhotse():
    below = files_of(sorted(everything_below(["scoring"])))
    assert len(below) >= 9
    for path in below:
        assert not libraries(path) & {"torch", "torchaudio", "lhotse"}, path


def test_model_and_loss_see_tensors_and_plain_arguments_only():
    files = files_of(["model", "loss"])
    assert len(files) >= 4
    for path in files:
        assert not libraries(path) & {"lhotse", "pydantic", "yaml"}, path
        assert ours(path) <= {"errors", "model"}, path


def test_only_the_command_line_imports_typer_and_rich():
    users = {part_of(path) for path in FILES if libraries(path) & {"typer", "rich", "click"}}
    assert users == {"cli"}


def test_scoring_runs_without_torch():
    code = "import sys, smoe_cli.scoring.report, smoe_cli.scoring.table; print({'torch', 'lhotse'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_whoever_reads_audio_has_lhotse_read_it_as_it_is_checked():
    """`audio` chooses the library when it is imported: without it, Lhotse would run a program for some files."""
    readers = {
        part_of(path)
        for path in FILES
        if re.search(r"\.load_audio\(|SharWriter\(|ReverbWithImpulseResponse\(", path.read_text(encoding="utf-8"))
    }
    assert readers >= {"audio", "augmentation", "packing"}
    for part in readers:
        assert "audio" in everything_below([part]), part


def unpickles(tree: ast.AST) -> list[str]:
    """What in a file could run code that somebody put into a file of data."""
    found = []
    for node in nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = {alias.name.split(".")[0] for alias in node.names} | {str(getattr(node, "module", "")).split(".")[0]}
            found += sorted(named & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"})
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
            said = {word.arg: ast.unparse(word.value) for word in node.keywords}
            safe = {"torch.load": ("weights_only", "True")}.get(ast.unparse(node.func), ("allow_pickle", "False"))
            found += [] if said.get(safe[0]) == safe[1] else [ast.unparse(node)]
    return found


def test_nothing_is_ever_unpickled():
    for path in FILES:
        assert not unpickles(ast.parse(path.read_text(encoding="utf-8"))), path
    for harm in (
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
    ):
        assert unpickles(ast.parse(f"def f(path):\n    {harm}")), harm


def test_the_map_names_only_what_exists():
    paths = re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:py|md|toml|txt))`", MAP.read_text(encoding="utf-8"))
    assert len(paths) >= 10
    # A path on the map starts at the root or, for modules, at the package.
    missing = [path for path in paths if not (ROOT / path).exists() and not (ROOT / "smoe_cli" / path).exists()]
    assert not missing


def anchors(page: str) -> set[str]:
    """What a link can name on a page: its headings, in the form that GitHub gives them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", page, re.MULTILINE)}


def test_every_link_and_picture_of_the_docs_leads_somewhere():
    seen = 0
    for path in DOCS:
        page = path.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", page):
            target, _, anchor = "".join(link).partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            there = path.parent / target if target else path
            assert there.exists(), f"{path.relative_to(ROOT)}: `{target}` does not exist"
            assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), f"{path.relative_to(ROOT)}: no heading `#{anchor}`"
            seen += 1
    assert seen >= 25


def test_no_page_is_unfinished():
    assert len(DOCS) >= 20
    for path in DOCS:
        left = re.search(r"\b(?:TODO|TBD|FIXME|XXX|(?i:lorem))\b", path.read_text(encoding="utf-8"))
        assert not left, f"{path.relative_to(ROOT)}: {left[0]}"


def text_files() -> Iterator[tuple[Path, str]]:
    """Every text file of the project, not what is built, installed or learned."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name for name in folders if not re.fullmatch(r"\.git|\.venv|__pycache__|build|dist|exp|exp-.*|.*_cache|.*\.egg-info", name)
        ]
        for name in names:
            try:
                yield Path(folder, name), Path(folder, name).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_no_file_names_a_path_or_a_download_host_of_one_machine():
    private = re.compile(r"(?<![\w.])/(?:home|root|Users|work|mnt|opt)/[\w.]|https?://\S+/simple\b|file:/{2}")
    seen = 0
    for path, text in text_files():
        found = private.search(text)
        assert not found, f"{path.relative_to(ROOT)}: {found[0]}"
        seen += 1
    assert seen >= 80


def test_pins_are_plain_and_cover_what_smoe_needs():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    needed = {"torch", "torchaudio", "lhotse", "urllib3", "typer", "rich", "sentencepiece", "jiwer", "sacrebleu", "pydantic", "pyyaml"}
    needed |= {"safetensors", "soundfile", "numpy", "hibari-tts", "py-nanotts", "onnxruntime", "pytest", "ruff", "mypy", "build"}
    assert needed <= pinned
    assert "smoe" not in pinned
