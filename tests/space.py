"""Check a checkout against the rules of a Hugging Face Space: `make space`.

It prints a sentence for each broken rule, or else the command that uploads the checkout.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tests.lock import read_pins

ROOT = Path(__file__).resolve().parent.parent
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
CARD_KEYS = {
    *(
        "title",
        "emoji",
        "colorFrom",
        "colorTo",
        "sdk",
        "sdk_version",
        "python_version",
        "app_file",
        "short_description",
        "license",
        "models",
        "datasets",
    ),
    *(
        "tags",
        "thumbnail",
        "pinned",
        "header",
        "fullWidth",
        "base_path",
        "disable_embedding",
        "custom_headers",
        "suggested_hardware",
    ),
    *(
        "startup_duration_timeout",
        "preload_from_hub",
        "hf_oauth",
        "hf_oauth_scopes",
        "hf_oauth_expiration_minutes",
    ),
}
OAUTH_SCOPES = {"contribute-repos", "gated-repos"}
"""Wider scopes than these would hand a visitor's other repositories to a bug of ours."""
PYTHON_VERSIONS = ("3.12",)
"""The one of ZeroGPU's versions that the libraries run on."""
TORCH_VERSIONS = ("2.8.0", "2.9.1", "2.10.0", "2.11.0")
"""ZeroGPU's versions."""
MAX_DESCRIPTION_LENGTH = 60
MIB = 2**20
MAX_FILE_SIZE = 10 * MIB
MAX_WEIGHTS_SIZE = 32 * MIB
WEIGHT_SUFFIXES = {".safetensors", ".onnx"}
PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".npy", ".joblib"}
TORCH_IMPORTERS = {
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "spandrel",
    "kgen",
    "xformers",
    "bitsandbytes",
    "prodigyopt",
}
EXCLUDE_PATTERNS = (".git/*", ".ci/*", "tests/*", "requirements-dev.txt", "Makefile", "uv.lock")
"""What a Space does not need, beside what git ignores."""


def find_problems(root: Path) -> list[str]:
    """Return a sentence for each rule that the checkout breaks."""
    files = list_files(root)
    checks: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: _check_front_matter(root),
        lambda: _check_sizes(root, files),
        lambda: _check_pickles(root, files),
        lambda: _check_requirements(root),
        lambda: _check_imports(root),
        lambda: _check_spaces_first(root),
    )
    return [sentence for check in checks for sentence in check()]


def list_files(root: Path) -> list[Path]:
    """Return the files of a checkout that git does not ignore, or all of any other folder."""
    if not (root / ".git").exists():
        return [file for file in root.rglob("*") if file.is_file()]
    told = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return [file for name in told.stdout.split("\0") if name and (file := root / name).is_file()]


# --- README ---------------------------------------------------------------------------------------


def _check_front_matter(root: Path) -> Iterator[str]:
    found = re.match(r"---\n(.*?)\n---\n", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    if not found:
        yield "README.md: it does not begin with the front matter that a Space reads."
        return
    try:
        card: dict[str, Any] = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        yield f"README.md: the front matter is not YAML: {str(error).splitlines()[0]}."
        return
    for key in sorted(card.keys() - CARD_KEYS):
        yield f"README.md: {key} is not a key that a Space reads."
    for key in ("title", "emoji", "sdk", "sdk_version", "python_version", "app_file", "license"):
        if not card.get(key):
            yield f"README.md: {key} is missing."
    for key in ("colorFrom", "colorTo"):
        if card.get(key) not in COLOURS:
            yield f"README.md: {key}: {card.get(key)!r} is not valid. Use one of: {', '.join(COLOURS)}."
    if card.get("sdk") != "gradio":
        yield f"README.md: sdk: {card.get('sdk')!r} is not what this is written for; it takes gradio."
    if not isinstance(card.get("python_version"), str):
        yield (
            f"README.md: python_version: {card.get('python_version')} is a number, in which 3.10 is 3.1; "
            "quote it."
        )
    elif card["python_version"] not in PYTHON_VERSIONS:
        yield (
            f"README.md: python_version: {card['python_version']} is not valid; ZeroGPU and the "
            f"libraries have {', '.join(PYTHON_VERSIONS)} in common."
        )
    if len(str(card.get("short_description", ""))) > MAX_DESCRIPTION_LENGTH:
        yield (
            f"README.md: short_description: {len(card['short_description'])} characters are too many; "
            f"the limit is {MAX_DESCRIPTION_LENGTH}."
        )
    if not (root / str(card.get("app_file"))).is_file():
        yield f"README.md: app_file: {card.get('app_file')} does not exist."
    if wide := set(card.get("hf_oauth_scopes", [])) - OAUTH_SCOPES:
        yield (
            f"README.md: hf_oauth_scopes: {sorted(wide)[0]} is wider than is needed; "
            f"it takes {', '.join(sorted(OAUTH_SCOPES))}."
        )
    yield from _check_sdk_version(root, str(card.get("sdk_version")))


def _check_sdk_version(root: Path, version: str) -> Iterator[str]:
    try:
        wanted = read_pins((root / "requirements.txt").read_text(encoding="utf-8")).get("gradio")
    except InvalidRequirement:
        return  # `_check_requirements` reports it
    if wanted and not wanted.specifier.contains(version):
        yield (
            f"README.md: sdk_version: {version} is not the Gradio of requirements.txt, "
            f"gradio{wanted.specifier}."
        )


# --- files ----------------------------------------------------------------------------------------


def _check_sizes(root: Path, files: list[Path]) -> Iterator[str]:
    for file in files:
        if (size := file.stat().st_size) > MAX_FILE_SIZE:
            yield (
                f"{file.relative_to(root)}: {size / MIB:.1f} MiB are too many; "
                f"a file may have {MAX_FILE_SIZE // MIB}."
            )
    weights = sum(file.stat().st_size for file in files if file.suffix in WEIGHT_SUFFIXES)
    if weights > MAX_WEIGHTS_SIZE:
        yield (
            f"weights: {weights / MIB:.1f} MiB in all are too many; "
            f"up to {MAX_WEIGHTS_SIZE // MIB} are kept in a repository."
        )


def _check_pickles(root: Path, files: list[Path]) -> Iterator[str]:
    for file in files:
        with file.open("rb") as opened:
            head = opened.read(2)
        if file.suffix in PICKLE_SUFFIXES or (
            head[:1] == b"\x80" and head[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")
        ):
            yield (
                f"{file.relative_to(root)}: it is a pickle, or called like one; "
                "weights are safetensors and onnx here."
            )


# --- requirements and imports ---------------------------------------------------------------------


def _check_requirements(root: Path) -> Iterator[str]:
    try:
        found = read_pins((root / "requirements.txt").read_text(encoding="utf-8"))
    except InvalidRequirement as error:
        yield f"requirements.txt: {str(error).splitlines()[0]}."
        return
    for name in ("torch", "torchvision", "gradio", "spaces"):
        if name not in found:
            yield f"requirements.txt: {name} is missing."
    if "torch" in found and not any(found["torch"].specifier.contains(each) for each in TORCH_VERSIONS):
        yield f"requirements.txt: {found['torch']} is none that ZeroGPU has: {', '.join(TORCH_VERSIONS)}."


def _check_imports(root: Path) -> Iterator[str]:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [settings["dependencies"], *settings["optional-dependencies"].values()]
    brought = {canonicalize_name(Requirement(line).name) for lines in lists for line in lines}
    known = _map_distributions()
    where = {
        module: file
        for file in _list_code(root)
        for module in _list_modules(file.read_text(encoding="utf-8"))
    }
    for module, file in sorted(where.items()):
        if not ({canonicalize_name(name) for name in known.get(module, [module])} & brought):
            yield f"{file.relative_to(root)}: it imports {module}, which pyproject.toml does not ask for."


_map_distributions = cache(packages_distributions)


def _list_code(root: Path) -> list[Path]:
    """Return the code that runs, without what makes nano's weights."""
    files = [root / "app.py", *sorted((root / "core").rglob("*.py")), *sorted((root / "tabs").rglob("*.py"))]
    return [file for file in files if file.is_file() and "nano" not in file.relative_to(root).parts]


@cache
def _list_modules(text: str) -> frozenset[str]:
    """Return the packages from elsewhere that are imported anywhere in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        tops = [name.partition(".")[0] for name in names]
        found |= {
            top
            for top in tops
            if top not in sys.stdlib_module_names and top not in ("core", "tabs", "app", "")
        }
    return frozenset(found)


def _check_spaces_first(root: Path) -> Iterator[str]:
    order = list(_walk_imports(root, "app", set()))
    if "spaces" not in order:
        yield "app.py: spaces is never imported, so that ZeroGPU lends nothing."
        return
    if early := next((name for name in order[: order.index("spaces")] if name in TORCH_IMPORTERS), None):
        yield f"app.py: {early} is imported before spaces, which must come before torch."


@cache
def _parse_body(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def _walk_imports(root: Path, module: str, seen: set[str]) -> Iterator[str]:
    """Yield the packages from elsewhere in the order in which a start imports them."""
    file = root / f"{module.replace('.', '/')}.py"
    if module in seen or not file.is_file():
        return
    seen.add(module)
    for node in _parse_body(file.read_text(encoding="utf-8")):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.partition(".")[0] in ("core", "tabs"):
                yield from _walk_imports(root, name, seen)
            else:
                yield name.partition(".")[0]


# --- the command ----------------------------------------------------------------------------------


def list_excludes(root: Path) -> list[str]:
    """Return the patterns of what is not uploaded, as `hf upload --exclude` takes them."""
    ignored = [
        line.strip()
        for line in (root / ".gitignore").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    patterns = [
        f"{line.removeprefix('/')}*" if line.startswith("/") else f"*{line}*" if line.endswith("/") else line
        for line in ignored
    ]
    return [*EXCLUDE_PATTERNS, *patterns]


def build_upload_command(root: Path) -> str:
    patterns = " ".join(f"--exclude '{pattern}'" for pattern in list_excludes(root))
    return f"hf upload OWNER/NAME . . --repo-type space {patterns}"


def try_installing(root: Path) -> str | None:
    """Return why a Space cannot install requirements.txt beside its packages, or None if it can."""
    group = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]["space"]
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--python-version",
        PYTHON_VERSIONS[0],
    ]
    command += ["--python-platform", "x86_64-manylinux_2_28", "requirements.txt", "-"]
    done = subprocess.run(command, cwd=root, input="\n".join(group), capture_output=True, text=True)
    return f"requirements.txt: a Space cannot install it: {done.stderr.strip()}" if done.returncode else None


def main() -> None:
    """Exit with status 1 and a sentence for each broken rule, or print the command."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    if found := find_problems(root) or [sentence for sentence in [try_installing(root)] if sentence]:
        sys.exit("\n".join(found))
    print(f"This checkout is what a Space takes. To upload it:\n\n  {build_upload_command(root)}")


if __name__ == "__main__":
    main()
