"""The wheel, not the tree: what users install."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"dcp_core", "dcp_s3", "dcp_gcs", "dcp_azure", "dcp_http"}
ENTRY_POINTS = {
    "s3": "dcp_s3",
    "gs": "dcp_gcs",
    **dict.fromkeys(("az", "abfs", "abfss"), "dcp_azure"),
    **dict.fromkeys(("http", "https"), "dcp_http"),
}


def run(*command: str, cwd: Path = ROOT, code: int = 0) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as an installer without a wheel would."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel))
    return folder


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_top_level(wheel: Path) -> None:
    top = {name.split("/")[0] for name in names(wheel)}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES
    assert len(top) == len(PACKAGES) + 1


def test_every_backend_is_in_the_wheel(wheel: Path) -> None:
    backends = {path.parent.name for path in (ROOT / "backends").glob("*/__init__.py")}
    assert backends == PACKAGES - {"dcp_core"}
    for package in PACKAGES:
        assert f"{package}/py.typed" in names(wheel)


def test_every_module_is_in_the_wheel(wheel: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "dcp_core").rglob("*.py")}
    modules |= {str(path.relative_to(ROOT / "backends")) for path in (ROOT / "backends").rglob("*.py")}
    assert {name for name in names(wheel) if name.endswith(".py")} == modules


def test_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        text = archive.read(name).decode()
    assert "[dcp_core.backends]\n" in text
    for scheme, package in ENTRY_POINTS.items():
        assert f"\n{scheme} = {package}:backend\n" in text
    assert "dcp-cloud = dcp_core.cli:main" in text


def in_site(installed: Path, code: str, tmp_path: Path) -> str:
    """Run ``code`` where only the installed wheel is importable, not a checkout."""
    prelude = (
        "import sys; from pathlib import Path\n"
        "def ours(p): return any(Path(p, name).is_dir() for name in ('dcp_core', 'dcp_s3'))\n"
        f"sys.path = [{str(installed)!r}, *(p for p in sys.path if not ours(p))]\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in type(f).__module__.lower()]\n"
    )
    return run(sys.executable, "-c", prelude + code, cwd=tmp_path)


def test_installed_packages_import(installed: Path, tmp_path: Path) -> None:
    names = ", ".join(sorted(PACKAGES))
    code = f"import {names}; print(*(package.__file__ for package in ({names})))"
    assert in_site(installed, code, tmp_path).count(str(installed)) == len(PACKAGES)
    code = "\ntry: import backends\nexcept ImportError: print('no backends')"
    assert in_site(installed, code, tmp_path).strip() == "no backends"


def test_one_extra_does_without_the_others(installed: Path, tmp_path: Path) -> None:
    """With the packages of the extra s3 alone, s3:// works, and the other schemes say what to install."""
    absent = (
        "aiohttp",
        "yarl",
        "google.auth",
        "google.cloud",
        "azure",
        "requests",
        "typer",
        "rich",
        "pytest",
    )
    urls = {
        "gs://bucket/x": "gcs",
        "az://bucket/x": "azure",
        "http://host/x": "http",
        "https://host/x": "http",
    }
    code = (
        f"for name in {absent}: sys.modules[name] = None\n"
        "import dcp_core\n"
        "print(dcp_core.CloudStorageWriter('s3://bucket/x', region='eu-west-1').checkpoint.store().bucket)\n"
        f"for url in {list(urls)}:\n"
        "    try: dcp_core.CloudStorageReader(url)\n"
        "    except dcp_core.MissingExtraError as error: print(error)\n"
    )
    first, *others = in_site(installed, code, tmp_path).splitlines()
    assert first == "bucket"
    for line, (url, extra) in zip(others, urls.items(), strict=True):
        assert line.startswith(f"{url.partition(':')[0]}:// needs the package ")
        assert any(name in line for name in absent)
        assert line.endswith(f"pip install 'dcp-cloud[{extra}]'")


def test_extras_name_what_the_backends_import(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        lines = archive.read(name).decode().splitlines()
    wanted = [line for line in lines if line.startswith("Requires-Dist")]
    needs = {
        "s3": ["boto3"],
        "gcs": ["google-cloud-storage"],
        "azure": ["azure-storage-blob", "azure-identity", "azure-core", "requests"],
        "http": ["aiohttp"],
    }
    for extra, packages in needs.items():
        for package in packages:
            found = f"Requires-Dist: {package}>="
            assert any(line.startswith(found) and f"extra == '{extra}'" in line for line in wanted), package
    always = [line for line in wanted if "extra ==" not in line]
    assert {line.split()[1].split(">")[0].split("<")[0] for line in always} == {"torch", "awscrt"}


def test_command(seaweedfs_bucket: object) -> None:
    assert "gc" in run(str(Path(sys.executable).parent / "dcp-cloud"), "--help")
    found = run(str(Path(sys.executable).parent / "dcp-cloud"), "schemes").split()
    assert found == sorted(f"{scheme}://" for scheme in ENTRY_POINTS)


def check_types(installed: Path, consumer: str, code: int) -> str:
    """Types of the wheel count; its own errors do not, as for anything in site-packages."""
    path = Path(__file__).parent / "consumer" / consumer
    return run(
        sys.executable, "-c",
        f"import os, sys; os.environ['MYPYPATH'] = {str(installed)!r}\n"
        "from mypy.main import main; main(args=sys.argv[1:], clean_exit=True)",
        "--strict", "--follow-imports=silent", "--config-file=", "--no-incremental",
        "--cache-dir=/dev/null", str(path),
        cwd=installed.parent, code=code,
    )  # fmt: skip


def test_a_right_consumer_type_checks(installed: Path) -> None:
    check_types(installed, "right.py", 0)


def test_a_wrong_consumer_does_not(installed: Path) -> None:
    said = check_types(installed, "wrong.py", 1)
    refused = {int(line.split(":")[1]) for line in said.splitlines() if ": error:" in line}
    source = (Path(__file__).parent / "consumer" / "wrong.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(source, 1) if "  # " in line}
    assert len(wrong) == 11
    assert refused == wrong, said
