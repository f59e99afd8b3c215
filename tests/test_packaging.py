"""What is installed: the wheel, its dependencies and the lock files."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from app import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
USED_BY_NAME_ONLY = {"psycopg", "uvloop", "httptools"}  # SQLAlchemy and uvicorn load them


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this checkout, without the network."""
    return Path(
        next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"]))
    )


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_is_named_for_the_version_of_the_package(wheel: Path):
    assert wheel.name == f"jethook-{__version__}-py3-none-any.whl"


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else_at_its_top(names: list[str]):
    expected = {
        str(path.relative_to(ROOT)) for path in (ROOT / "app").rglob("*") if path.is_file() and path.suffix != ".pyc"
    }

    assert expected <= set(names)
    assert {name.split("/")[0] for name in names} == {"app", f"jethook-{__version__}.dist-info"}
    assert not [name for name in names if name.endswith(".pyc") or name.endswith(".db")]


def test_the_wheel_holds_the_migrations(names: list[str]):
    migrations = {
        "app/_" + str(path.relative_to(ROOT)) for path in (ROOT / "migrations").rglob("*.py") if path.is_file()
    }

    assert len(migrations) >= 2
    assert migrations <= set(names)


def test_the_wheel_has_the_command_and_the_license(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        info = f"jethook-{__version__}.dist-info"
        assert "jethook = app.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()


def test_migrate_works_from_the_wheel_alone(wheel: Path, tmp_path: Path):
    """Away from the checkout: a zip in place of an installation would not do, migrations are files."""
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    place = tmp_path / "place"
    place.mkdir()

    done = subprocess.run(
        [sys.executable, "-m", "app", "migrate"], cwd=place, capture_output=True, text=True, timeout=30, check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(unpacked)},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("(was empty)\n")
    assert (place / "jethook.db").is_file()


# --- dependencies ----------------------------------------------------------------------------------------------------


def _imported(folder: str) -> Iterator[str]:
    """The distributions of what the code imports, without the standard library and ourselves."""
    distributions = importlib.metadata.packages_distributions()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            for module in modules:
                top = module.split(".")[0]
                if top in sys.stdlib_module_names or top in {"app", "tests"}:
                    continue
                assert top in distributions, f"{path}: {module} is not installed"
                yield from map(_normal, _holding(module, set(distributions[top])))


def _holding(module: str, names: set[str]) -> set[str]:
    """Of the distributions that share a name at the top, those with this module."""
    if len(names) == 1:
        return names
    place = module.replace(".", "/")
    files = {name: map(str, importlib.metadata.files(name) or ()) for name in names}
    return {name for name in names if any(file.startswith((f"{place}/", f"{place}.py")) for file in files[name])}


def _normal(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_what_is_imported_is_declared_and_what_is_declared_is_used():
    optional = PROJECT["project"]["optional-dependencies"].values()
    declared = {_normal(requirement) for requirement in chain(PROJECT["project"]["dependencies"], *optional)}

    assert set(_imported("app")) | set(_imported("migrations")) | USED_BY_NAME_ONLY == declared


def test_the_build_backend_is_the_one_of_the_lock_file():
    (backend,) = PROJECT["build-system"]["requires"]

    assert f"{backend} \\" in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()


LOCKS = ["requirements.lock", "tests/requirements.lock", "tests/benchmarks/requirements.lock"]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_pins_every_package_with_hashes(lock: str):
    text = (ROOT / lock).read_text(encoding="utf-8")
    packages = re.split(r"\n(?=[a-z0-9])", text)[1:]

    assert packages
    assert all(re.match(r"[a-z0-9.-]+==\S+", package) and "--hash=sha256:" in package for package in packages)
    assert "://" not in text


@pytest.mark.parametrize("lock", LOCKS[1:])
def test_the_lock_files_agree(lock: str):
    def versions(name: str) -> dict[str, str]:
        text = (ROOT / name).read_text(encoding="utf-8")
        return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))

    runtime = versions(LOCKS[0])

    assert {name: version for name, version in versions(lock).items() if name in runtime}.items() <= runtime.items()
