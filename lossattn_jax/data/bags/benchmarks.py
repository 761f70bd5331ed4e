"""The benchmarks MUSK1, MUSK2, Fox, Tiger and Elephant of multiple instance learning.

    dataset = load("musk1", "data/mil")                     # reads data/mil/musk1.csv.gz, or what UCI gives
    dataset = load("fox", "data/mil", download=True)        # fetches it if it is not there

MUSK is from Dietterich et al. 1997, the three others from Andrews et al. 2002 (images of Corel, cut into
segments). What was fetched is held against fingerprints of the content, which do not depend on the order
of bags and instances or on the file's format.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import logging
import os
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib

import numpy as np

from lossattn_jax.data.archives import MOST_BYTES, content
from lossattn_jax.data.bags import bag_files
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.errors import UserError

_LOG = logging.getLogger(__name__)
_TIMEOUT = 30.0  # seconds without an answer
_CHUNK = 1 << 16
_REPORT = 5.0  # seconds between lines of progress
_TOLERANCE = 1e-4  # of `moments`: the features are published with six digits or more

# What reading a damaged archive may raise; RuntimeError is for passwords and unknown compressions.
_DAMAGE_ERRORS = (
    *(OSError, EOFError, ValueError, RuntimeError),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
)

_UCI = "https://archive.ics.uci.edu/static/public"
_ANDREWS = "http://www.cs.columbia.edu/~andrews/mil/data/MIL-Data-2002-Musk-Corel-Trec9-MATLAB.tgz"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark: sizes, source, and digests of its bags.

    Attributes:
      name: its name here.
      bags: how many.
      instances: how many.
      features: of an instance.
      positive: bags of the last class.
      url: of an archive, zip or tar.
      files: the names of the published file, of which the archive holds the first or second.
      lengths: `lengths_digest` of the bags.
      exact: `exact_digest` of the bags; None where features are not whole numbers.
      moments: `feature_moments` of the bags, where there is no exact digest.
    """

    name: str
    bags: int
    instances: int
    features: int
    positive: int
    url: str
    files: tuple[str, ...]
    lengths: str
    exact: str | None = None
    moments: tuple[float, ...] = ()


# Digests and moments are of the features as UCI and Andrews et al. publish them.
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="musk1",
            bags=92,
            instances=476,
            features=166,
            positive=47,
            url=f"{_UCI}/74/musk+version+1.zip",
            files=("clean1.data", "clean1.data.Z", "musk1norm_matlab.mat"),
            lengths="5f3394b3676e66dcb86d964eebb39c3932f0ef28e1a7aea68827fc4f373a3851",
            exact="f0fd0c3d2ce87c4f566bb44200be09fe88137c2a630a8a22ddfcdc68f3e2b88b",
        ),
        Benchmark(
            name="musk2",
            bags=102,
            instances=6598,
            features=166,
            positive=39,
            url=f"{_UCI}/75/musk+version+2.zip",
            files=("clean2.data", "clean2.data.Z", "musk2norm_matlab.mat"),
            lengths="d27311c9c2bd9c956a8961111529591f930092eb9baaa683130aeaad1439d0c3",
            exact="dc1eb5f135fb5b80f4a6f008c964ee6512a739f6b002e19c2cc1f974f3e460f6",
        ),
        Benchmark(
            name="fox",
            bags=200,
            instances=1320,
            features=230,
            positive=100,
            url=_ANDREWS,
            files=("fox_100x100_matlab.mat",),
            lengths="20a01a3b68ac09499d338d327ba8edbba211fdf722c50797affb9de53c872eda",
            moments=(
                *(10.0490057, 3.23708995, 19.6591136, 6.42738564, 86.5485753, 33.2416635),
                *(8.03617616, 2.29353636, 17.2947512, 5.43059784, 46.4779857, 18.9682098),
            ),
        ),
        Benchmark(
            name="tiger",
            bags=200,
            instances=1220,
            features=230,
            positive=100,
            url=_ANDREWS,
            files=("tiger_100x100_matlab.mat",),
            lengths="ffa6861272c6938840f99836d5c3e3dd6aa960d0ece99ca58c99e717557759ce",
            moments=(
                *(9.6552142, 3.03474166, 20.2449613, 6.54324045, 77.1134302, 26.7612556),
                *(12.0976749, 3.61291292, 19.8222326, 6.30130491, 86.7542682, 38.5173242),
            ),
        ),
        Benchmark(
            name="elephant",
            bags=200,
            instances=1391,
            features=230,
            positive=100,
            url=_ANDREWS,
            files=("elephant_100x100_matlab.mat",),
            lengths="7d68a0530b8bb36b78673f5b3e54a802c83d99ceea4a669d164234f0ab7ff50e",
            moments=(
                *(7.84442188, 2.15850161, 16.3207835, 5.01121331, 40.6988122, 12.851399),
                *(9.85768181, 4.67771439, 20.1983648, 7.92277604, 71.0975461, 43.4480209),
            ),
        ),
    )
}


def lengths_digest(dataset: BagDataset) -> str:
    """Computes SHA-256 of the sorted pairs (class, length) of all bags."""
    pairs = sorted(zip(dataset.labels.tolist(), dataset.lengths.tolist(), strict=True))
    return hashlib.sha256(np.array(pairs, "<i4").tobytes()).hexdigest()


def exact_digest(dataset: BagDataset) -> str | None:
    """Computes SHA-256 of labels and features.

    None where features are not whole numbers.

    It is the digest of the sorted digests of the bags, each being that of the class and of the instances
    as int32, smallest first.
    """
    whole = dataset.instances.astype("<i4")
    if not np.array_equal(whole, dataset.instances):
        return None
    digests = []
    for label, bag in zip(dataset.labels, np.split(whole, dataset.offsets[1:-1]), strict=True):
        sorted_bag = bag[np.lexsort(bag.T[::-1])]
        digests.append(hashlib.sha256(np.int32(label).tobytes() + sorted_bag.tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def feature_moments(dataset: BagDataset) -> np.ndarray:
    """Computes `[12]` sums over features that rounding of features hardly changes.

    For the first class and for the others, of max(x, 0), |x| and x squared, the sum over features and
    the sum weighted by the feature's place (between 0 and 1), per instance.
    """
    instances = dataset.instances.reshape(len(dataset.instances), -1).astype(np.float64)
    positive = np.repeat(dataset.labels > 0, dataset.lengths)
    place = (1 + np.arange(instances.shape[1])) / instances.shape[1]
    moments = []
    for part in (instances[~positive], instances[positive]):
        for values in (np.maximum(part, 0), np.abs(part), part**2):
            sums = values.sum(axis=0) / len(instances)
            moments += [sums.sum(), sums @ place]
    return np.array(moments)


def difference(dataset: BagDataset, benchmark: Benchmark) -> str | None:
    """Names what differs between bags and a benchmark; None for nothing."""
    unlike = _unlike_bags(dataset, benchmark)
    if unlike is not None:
        return unlike
    if benchmark.exact is not None:
        return None if exact_digest(dataset) == benchmark.exact else "other features"
    moments = feature_moments(dataset)
    same = np.allclose(moments, benchmark.moments, rtol=_TOLERANCE, atol=0)
    return None if same else "other features"


def has_bags_of(dataset: BagDataset, benchmark: Benchmark) -> bool:
    """Whether bags are those of a benchmark.

    Their features may be those of a normalised copy.
    """
    return _unlike_bags(dataset, benchmark) is None


def _unlike_bags(dataset: BagDataset, benchmark: Benchmark) -> str | None:
    """Names what differs in number and lengths of bags; None for nothing."""
    counts = {
        "bags": (len(dataset), benchmark.bags),
        "instances": (len(dataset.instances), benchmark.instances),
        "features": (dataset.instances[0].size, benchmark.features),
        "classes": (dataset.num_classes, 2),
        "positive bags": (int(np.count_nonzero(dataset.labels)), benchmark.positive),
    }
    for what, (count, right_count) in counts.items():
        if count != right_count:
            return f"{count} {what}, not {right_count}"
    if lengths_digest(dataset) != benchmark.lengths:
        return "bags of other lengths"
    return None


def get_benchmark(name: str) -> Benchmark:
    """Looks up a benchmark; an unknown name is a `UserError`."""
    if name not in BENCHMARKS:
        raise UserError(f"the benchmark {name!r} is unknown; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def load(name: str, data_dir: str | os.PathLike[str], download: bool = False) -> BagDataset:
    """Reads a benchmark from a folder.

    The first of these files that is there is taken: NAME.csv.gz, NAME.csv, and the published ones. One
    that is not quite the benchmark (such as a normalised copy) is taken too, but a warning is logged.

    Args:
      name: one of `BENCHMARKS`.
      data_dir: the folder.
      download: whether to fetch the benchmark if none of the files is there.

    Raises:
      UserError: unknown name, no file, a file that cannot be read, or a failed download.
    """
    benchmark = get_benchmark(name)
    folder = os.path.expanduser(data_dir)
    names = (f"{name}.csv.gz", f"{name}.csv", *benchmark.files)
    paths = [path for path in (os.path.join(folder, n) for n in names) if os.path.isfile(path)]
    if not paths and download:
        return _download(name, folder)
    if not paths:
        raise UserError(
            f"{name} is not in {folder}; put one of {', '.join(names)} there, or have it "
            f"downloaded from {benchmark.url} (--download, or download=True)"
        )
    dataset = _with_positive(dataclasses.replace(bag_files.read(paths[0]), name=name), benchmark)
    unlike = difference(dataset, benchmark)
    if unlike:
        _LOG.warning("%s is not %s as published: it has %s", paths[0], name, unlike)
    return dataset


def _with_positive(dataset: BagDataset, benchmark: Benchmark) -> BagDataset:
    """Finds the positive class of a benchmark with other class names."""
    if dataset.positive is None and dataset.num_classes == 2:
        for label in dataset.classes:
            candidate = dataclasses.replace(dataset, positive=label)
            if difference(candidate, benchmark) is None:
                return candidate
    return dataset


def download(
    name: str, data_dir: str | os.PathLike[str], benchmark: Benchmark | None = None
) -> BagDataset:
    """Fetches a benchmark, checks it, and stores the published file.

    Nothing is left behind where that fails; a file of that name is replaced only by one that is right.

    Args:
      name: one of `BENCHMARKS`.
      data_dir: the folder, which is made if need be.
      benchmark: what to fetch and expect instead of what `BENCHMARKS` says.

    Returns:
      The benchmark.

    Raises:
      UserError: unknown name, no answer, an archive that is damaged or lacks the file, other content than
        that of the benchmark, or a folder that cannot be written to.
    """
    benchmark = benchmark or get_benchmark(name)
    folder = os.path.abspath(os.path.expanduser(data_dir))
    is_new = not os.path.exists(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as temporary:
            archive = os.path.join(temporary, "archive")
            _fetch(benchmark, archive)
            path = _extract(benchmark, archive, temporary)
            dataset = dataclasses.replace(bag_files.read(path), name=name)
            unlike = difference(dataset, benchmark)
            if unlike:
                raise UserError(
                    f"what {benchmark.url} gives is not {name}: it has {unlike}; nothing was kept"
                )
            os.replace(path, os.path.join(folder, os.path.basename(path)))
        _LOG.info("%s is in %s", name, folder)
        return dataset
    except OSError as error:
        raise UserError(f"{name} cannot be kept in {folder} ({error.strerror or error})") from error
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(folder)


_download = download  # `load` has an argument of that name


def _fetch(benchmark: Benchmark, path: str) -> None:
    _LOG.info("fetching %s from %s", benchmark.name, benchmark.url)
    num_bytes, last_report = 0, time.monotonic()
    try:
        with urllib.request.urlopen(benchmark.url, timeout=_TIMEOUT) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            with open(path, "wb") as file:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    num_bytes += len(chunk)
                    if num_bytes > MOST_BYTES:
                        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
                    if time.monotonic() - last_report > _REPORT:
                        last_report = time.monotonic()
                        _LOG.info(
                            "%.1f MB of %s", num_bytes / 1e6, f"{size / 1e6:.1f}" if size else "?"
                        )
        if num_bytes < size:
            raise ConnectionError(f"it ended after {num_bytes} of {size} bytes")
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", None) or error).rstrip(".") or type(error).__name__
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is an answer as well
        raise UserError(
            f"{benchmark.url} could not be fetched ({reason}); fetch {benchmark.files[0]} by hand and "
            "put it into the data folder"
        ) from error


def _extract(benchmark: Benchmark, archive: str, folder: str) -> str:
    """Takes the published file out of an archive, whatever its folder."""
    try:
        members = _members(archive, benchmark.files[:2])
    except _DAMAGE_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise UserError(
            f"the archive from {benchmark.url} is damaged ({reason}); nothing was kept"
        ) from error
    for name in benchmark.files[:2]:
        if name in members:
            path = os.path.join(folder, name)
            with open(path, "wb") as file:
                file.write(members[name])
            return path
    raise UserError(f"the archive from {benchmark.url} holds no {benchmark.files[0]}")


def _members(archive: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """Reads files of an archive into memory.

    Nothing is written to where the archive's paths say.
    """
    contents = {}
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as archive_file:
            for entry in archive_file.infolist():
                if os.path.basename(entry.filename) in names:
                    with archive_file.open(entry) as stream:
                        contents[os.path.basename(entry.filename)] = content(stream, entry.filename)
        return contents
    with tarfile.open(archive) as archive_file:
        for member in archive_file:
            if member.isfile() and os.path.basename(member.name) in names:
                reader = archive_file.extractfile(member)
                assert reader is not None  # it is a file
                contents[os.path.basename(member.name)] = content(reader, member.name)
    return contents
