"""The rooms may only import downwards: app -> tabs -> core.gpu -> ... -> types."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "app.py", *sorted((ROOT / "tabs").rglob("*.py")), *sorted((ROOT / "core").rglob("*.py"))]

# Lowest first; a room may import what stands below it.
FLOORS = [
    {
        "core.types",
        "core.aside",
        "core.atomic",
        "core.journal",
        "core.installed",
        "core.data",
        "core.train",
        "core.train.fellows",
        "core.train.order",
        "core.decide",
        "core.samplers",
        "core.masks",
        "core.beforehand",
        "core.blocks",
        "core.markdown",
        "core.patience",
        "core.paths",
        "core.pristine",
        "core.recent",
        "core.sizes",
        "core.publish",
        "core.transfer",
        "core.transfer.page",
    },
    {"core.checks", "core.tensorfile", "core.digest", "core.memory"},
    {
        "core.closing",
        "core.publish.measured",
        "core.transfer.lineage",
        "core.transfer.judge",
        "core.lorachange",
        "core.lorakeys",
        "core.train.folder",
        "core.data.words",
        "core.limits",
        "core.prompts",
        "core.grain",
        "core.events",
    },
    {"core.toml"},
    {
        "core.charts",
        "core.detect",
        "core.data.buckets",
        "core.data.dataset",
        "core.data.pictures",
        "core.presets",
        "core.infotext",
        "core.measure",
        "core.room",
        "core.grid",
        "core.lorafile",
        "core.device",
        "core.caption",
        "core.encode",
    },
    {"core.upscale"},
    {"core.hubcache", "core.apart"},
    {"core.arriving"},
    {"core.hub"},
    {"core.modelfiles"},
    {"core.opening"},
    {"core.pulled"},
    {
        "core.data.files",
        "core.train.ending",
        "core.train.turns",
        "core.train.settings",
        "core.train.objective",
        "core.tools",
        "core.models",
        "core.denoise",
        "core.record",
        "core.lora",
        "core.tiles",
        "core.edit",
    },
    {
        "core.data.layout",
        "core.data.sources",
        "core.train.adapter",
        "core.train.caches",
        "core.train.run",
        "core.train.travel",
        "core.train.offers",
        "core.cells",
        "core.expand",
        "core.hires",
        "core.details",
        "core.shelf",
        "core.features",
    },
    {"core.data.kohya", "core.data.tagging", "core.data.undo", "core.train.optimizer", "core.train.metadata", "core.together"},
    {"core.data.intake", "core.train.export", "core.train.lesson"},
    {"core.asking", "core.generate"},
    {"core.plan"},
    {"core.train.preview"},
    {"core.train.owner", "core.train.estimate", "core.train.loop", "core.train.bucket", "core.lent"},
    {"core.gpu", "core.train.runs", "core.train.jobs"},
    {"core.sweep", "core.train.__main__", "core.selfcheck", "core.sweeper"},
    {"core.report"},
    {"core.outcome", "core.transfer.study", "core.transfer.plan"},
    {"core.transfer.claims", "core.transfer.blocks", "core.publish.plan"},
    {"core.publish.card"},
    {"core.publish.bundle", "core.publish.push"},
    {"core.transfer.report"},
    {"core.transfer.outcome"},
    {"tabs.files", "tabs.sessions", "tabs.stages", "tabs.watch", "tabs.caller"},
    {"tabs.bodies"},
    {"tabs.widgets", "tabs.prompt"},
    {"tabs.settings", "tabs.api", "tabs.pictures", "tabs.health", "tabs.door", "tabs.brought", "tabs.publishing"},
    {"tabs.generate", "tabs.training", "tabs.expected", "tabs.captions"},
    {"tabs.sweep", "tabs.watching", "tabs.jobs"},
    {"tabs.train", "tabs.crossing"},
    {"tabs.finished"},
    {"tabs.across"},
    {"tabs.transfer"},
    {"tabs.publish"},
    {"app"},
]

DRAWN = {("core.train.__main__", name) for name in ("core.nano.lessons", "core.nano.lessons.airbrushed")}
"""The example run draws its pictures on the spot."""


def room(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=room)
def test_rooms_import_downwards(file: Path) -> None:
    floors = {name: level for level, names in enumerate(FLOORS) for name in names}
    here = room(file)
    if here in ("core", "tabs") or here.startswith("core.nano"):
        return
    assert here in floors, f"{here} has no floor in tests/test_layers.py"
    for name in imported(file):
        if name in floors:
            assert floors[name] < floors[here], f"{here} imports {name}, which stands on its floor or above"
        assert not name.startswith("core.nano") or (here, name) in DRAWN, f"{here} imports {name}: what makes the weights is no part of what runs"


@pytest.mark.parametrize("file", [f for f in FILES if f.is_relative_to(ROOT / "core")], ids=room)
def test_core_knows_no_page(file: Path) -> None:
    pages = {name for name in imported(file) if name.split(".")[0] in ("gradio", "tabs", "app")}
    assert not pages, f"{room(file)} imports {pages}"


def test_spaces_has_one_door() -> None:
    doors = {room(file) for file in FILES if "spaces" in imported(file)}
    assert doors == {"core.gpu"}


def test_spaces_comes_before_torch() -> None:
    """`app` imports the door first, and the door imports `spaces` first."""
    for file, first in ((ROOT / "app.py", "core"), (ROOT / "core" / "gpu.py", "spaces")):
        node = next(n for n in ast.parse(file.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom))
        name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        assert name == first, f"{file.name} imports {name} before {first}"


@pytest.mark.parametrize("file", FILES, ids=room)
def test_first_line_says_what_the_file_is_for(file: Path) -> None:
    text = file.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{room(file)} does not say what it is for"
