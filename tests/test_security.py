"""Nothing in a file is run or unpacked to where it says: what sources call, and hostile archives."""

import ast
import io
import pathlib
import re
import tarfile
import zipfile

import numpy as np
import pytest
from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.data import archives
from lossattn_jax.data.bags import bag_files, benchmarks, matlab_files, text_tables, unix_compress
from lossattn_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("benchmarks", "configs", "lossattn_jax", "reliability")
SOURCES = [ROOT / "train.py", *(p for name in FOLDERS for p in ROOT.glob(f"{name}/**/*.py"))]

OWN = {"lossattn_jax", "benchmarks", "reliability"}

# What runs, or unpacks, whatever a file says.
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("os.system", "os.popen", "shutil.unpack_archive", "pandas.read_pickle", "tempfile.mktemp"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "torch.hub.load", "jit.load"),
}
METHODS = {"extractall", "extract", "unpack_archive", "_unsafe_load"}
# Calls that are right with this argument alone.
WITH = {
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}


def dangers(text):
    """What a source has of the above, each with its line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names]
            found += [(node.lineno, name) for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        key, value = WITH.get(name, (None, None))
        if (
            name in BUILTINS | CALLS
            or name.split(".")[-1] in METHODS
            and "." in name
            or (key is not None and given.get(key) is not value)
            or given.get("shell")
            or given.get("allow_pickle")
        ):
            found.append((node.lineno, name))
    return found


def test_no_source_runs_what_a_file_says():
    assert len(SOURCES) > 100
    found = {str(path): dangers(path.read_text()) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "text",
    [
        *("import pickle", "from pickle import loads", "import yaml", "import joblib"),
        *("eval('1')", "exec(x)", "os.system('ls')", "subprocess.run('ls', shell=True)"),
        *("np.load(p)", "np.load(p, allow_pickle=True)", "torch.load(p)", "archive.extractall(p)"),
        *("torch.load(p, weights_only=False)", "a.extract(m)", "shutil.unpack_archive(p)"),
    ],
)
def test_what_would_be_found(text):
    assert dangers(text)


@pytest.mark.parametrize(
    "text", ["np.load(p, allow_pickle=False)", "torch.load(p, weights_only=True)", "network.eval()"]
)
def test_what_is_right(text):
    assert not dangers(text)


def private_imports(text):
    """The modules and names of other packages that a source imports although they are private."""
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if re.search(r"\._[^_]", name) and name.split(".")[0] not in OWN:
                yield name


def test_no_source_imports_private_names_of_other_packages():
    assert list(private_imports("from orbax.checkpoint._src import path")) != []
    assert list(private_imports("import jax._src.core")) != []
    assert [name for path in SOURCES for name in private_imports(path.read_text())] == []


def link(name, target, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def hostile_tar(path, secret, content):
    """An archive whose first members lead elsewhere, and whose last is what is looked for."""
    with tarfile.open(path, "w:gz") as packed:
        packed.addfile(link("a/clean1.data", str(secret), tarfile.SYMTYPE))
        packed.addfile(link("b/clean1.data", str(secret), tarfile.LNKTYPE))
        packed.addfile(link("c/clean1.data", "", tarfile.FIFOTYPE))
        for name in ("../../clean1.data", "/tmp/evil/clean1.data"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))


def hostile_zip(path, secret, content):
    with zipfile.ZipFile(path, "w") as packed:
        linked = zipfile.ZipInfo("a/clean1.data")
        linked.external_attr = 0o120777 << 16  # a symbolic link, if it were unpacked
        packed.writestr(linked, str(secret))
        for name in ("../../clean1.data", "/tmp/evil/clean1.data", "..\\..\\clean1.data"):
            packed.writestr(name, content)


@pytest.mark.parametrize("write", [hostile_tar, hostile_zip])
def test_paths_and_links_in_a_downloaded_archive_lead_nowhere(tmp_path, write):
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    write(folder / "archive", secret, b"published")
    before = sorted(tmp_path.rglob("*"))
    name, benchmark = "clean1.data", benchmarks.get_benchmark("musk1")
    path = benchmarks._extract(benchmark, str(folder / "archive"), str(folder))
    assert pathlib.Path(path) == folder / name
    assert pathlib.Path(path).read_bytes() == b"published"
    assert sorted(tmp_path.rglob("*")) == sorted([*before, folder / name])
    assert secret.read_text() == "not yours" and not pathlib.Path("/tmp/evil").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_file_in_an_archive_may_not_be_endless(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "MOST_BYTES", 1 << 20)
    path, content = tmp_path / "archive", bytes(1 + (1 << 20))
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("clean1.data", content)
    else:
        with tarfile.open(path, "w:gz") as packed:
            member = tarfile.TarInfo("clean1.data")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    assert path.stat().st_size < 5000
    with pytest.raises(UserError, match=r"its file clean1.data has more than 1 MiB"):
        benchmarks._extract(benchmarks.get_benchmark("musk1"), str(path), str(tmp_path))


def test_a_compressed_file_of_bags_may_not_be_endless(tmp_path, monkeypatch):
    import gzip

    monkeypatch.setattr(text_tables, "_MOST_BYTES", 1000)
    path = tmp_path / "own.csv.gz"
    path.write_bytes(gzip.compress(bytes(2_000_000)))
    with pytest.raises(UserError, match="own.csv.gz is damaged .*more than 0 MiB uncompressed"):
        bag_files.read(path)
    packed = bytearray(b"\x1f\x9d\x90")
    packed += sum(byte << 9 * place for place, byte in enumerate(b"a" * 100)).to_bytes(
        113, "little"
    )
    assert unix_compress.uncompress(bytes(packed)) == b"a" * 100
    with pytest.raises(ValueError, match="more than 99 bytes"):
        unix_compress.uncompress(bytes(packed), 99)


def test_a_compressed_matrix_may_not_be_endless(monkeypatch):
    import scipy.io

    file = io.BytesIO()
    scipy.io.savemat(file, {"features": np.zeros((300, 300))}, do_compression=True)
    assert matlab_files.read(file.getvalue(), ("features",))["features"].shape == (300, 300)
    monkeypatch.setattr(matlab_files, "_MOST_BYTES", 1 << 19)
    with pytest.raises(ValueError, match="more than 0 MiB"):
        matlab_files.read(file.getvalue(), ("features",))


def test_what_a_file_quotes_cannot_reach_the_terminal():
    told = command.one_line("line 3\nhas '\x1b[2J\u202e' \t in it")
    assert told == r"line 3 has '\x1b[2J\u202e' in it"
    assert len(command.one_line("x" * 10_000)) < 4100


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_have_a_lower_bound_and_orbax_an_upper_one(name):
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    wanted = [line for line in lines if line and not line.startswith("-r ")]
    assert len(wanted) > 4
    for line in wanted:
        bound = ",<1.0" if line.startswith("orbax-checkpoint") else ""
        assert re.fullmatch(rf"[A-Za-z0-9_.-]+>=[0-9][0-9.]*{bound}(; .+)?", line), line


def test_flags_of_other_tests_survive_a_command(tmp_path):
    from reliability import in_process

    before = set(flags.FLAGS)
    assert in_process.run(["-m", "lossattn_jax.models", "all"], tmp_path).returncode == 2
    assert "list" not in set(flags.FLAGS) - before
