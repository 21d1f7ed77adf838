"""The shape of the package: imports point downwards, giants have one door each, start-up is light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gbistat"

LAYERS = (
    ("errors", "typing", "rng", "extras"),
    ("data",),
    ("terms",),
    ("likelihood",),
    ("fit",),
    ("inference",),
    ("binned", "diagnostics"),
    ("plotting",),
    ("report",),
    (
        "workflow",
        "toy_workflow",
        "coverage_workflow",
        "learned_signal_workflow",
        "scan_workflow",
        "training_workflow",
        "diagnose_inputs",
        "diagnose_outputs",
        "diagnose_residuals",
        "diagnose_workflow",
        "config",
        "run_events",
        "run_warnings",
        "steps",
    ),
    ("cli", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SIDE_BY_SIDE = {"binned", "diagnostics"}

DOORS = {
    "keras": "training",
    "tensorflow": "training",
    "tf2onnx": "training",
    "sklearn": "training",
    "onnxruntime": "terms",
    "iminuit": "fit",
    "pyhf": "binned",
    "matplotlib": "plotting",
    "mplhep": "plotting",
    "click": "cli",
    "rich": "cli",
    "uproot": "data",
    "awkward": "data",
    "vector": "data",
    "h5py": "data",
    "pyarrow": "data",
    "jinja2": "report",
    "yaml": ("config", "training"),
    "distributed": "inference",
    "threadpoolctl": "inference",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """First folder or module below the package."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path, *, typing_too: bool = True) -> list[str]:
    """Dotted names that a module imports, at its top or inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped.update(child for statement in node.body for child in ast.walk(statement))
    found = []
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def upward(path: Path) -> list[str]:
    """Imports of gbistat that point up, or sideways where that is not allowed."""
    home = part(path)
    wrong = []
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] != "gbistat" or len(pieces) == 1 or pieces[1].startswith("__"):
            continue
        target = pieces[1]
        if home == "__init__":
            continue
        if home == "training":
            allowed = target == "training" or (target in LEVEL and LEVEL[target] <= LEVEL["terms"])
        elif target == "training":
            allowed = home in {"training_workflow", "cli"} or home.startswith("diagnose_")
        else:
            sideways = {home, target} == SIDE_BY_SIDE
            allowed = target in LEVEL and LEVEL[target] <= LEVEL[home] and not sideways
        if not allowed:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    assert upward(path) == []


def test_the_check_sees_an_upward_arrow(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    bad = tmp_path / "data" / "events.py"
    bad.write_text("def f():\n    from gbistat.fit.minimize import fit\n")
    assert upward(bad) == ["gbistat.fit.minimize.fit"]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_giants_have_one_door(path):
    for name in imports(path, typing_too=False):
        door = DOORS.get(name.split(".")[0])
        if door is not None:
            assert part(path) in ((door,) if isinstance(door, str) else door), f"{name} is imported outside {door}"


def test_no_submodule_imports_the_root():
    homes = {f"gbistat.{part(path)}" for path in modules()} | {"gbistat.__version__"}
    for path in modules():
        names = [name for name in imports(path) if name.startswith("gbistat.") and name.count(".") == 1]
        roots = [name for name in names if name not in homes]
        assert roots == [], f"{path} imports {roots} from the package root"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


HEAVY = ("tensorflow", "keras", "onnxruntime", "pyhf", "matplotlib", "mplhep", "uproot", "h5py", "scipy", "iminuit")


def test_import_is_light():
    result = run_python(f"import sys, gbistat; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_help_is_light():
    code = (
        "import sys\nfrom gbistat.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    begin = time.perf_counter()
    result = run_python(code)
    elapsed = time.perf_counter() - begin
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == "[]"
    assert "limits" in result.stdout
    # Ten times what it takes on an idle machine: a heavy import on the way to --help costs seconds.
    assert elapsed < 5.0


def test_everything_offered_at_the_root_exists():
    import gbistat

    for name in gbistat.__all__:
        assert getattr(gbistat, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'profile_intervall'"):
        gbistat.profile_intervall  # noqa: B018
