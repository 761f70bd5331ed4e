"""Devices: the only module that knows about pmap, replication and sharding.

Everything that runs on devices goes through `pmap` here: arguments and results carry a leading axis of
this process's devices, and `AXIS` names that axis for `lax.pmean` and `lax.psum`, across all processes.
"""

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
import platform
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lossattn_jax.errors import UserError

AXIS = "devices"

_MOST_UNROLLED = 64  # steps of a loop
_CACHE_BYTES = 4 * 2**30
_BEHIND = 2  # calls of `Agreement.is_reached`
_CACHE_SECONDS = 0.3  # of compilation, below which a program is not worth a file

# After so long without a sign of life a process counts as dead, and all others end with an error.
HEARTBEAT_SECONDS = 60
# So long a process that ends with an error waits for the others, which then end with one too.
SHUTDOWN_SECONDS = 60


def keep_programs() -> None:
    """Keeps compiled programs on disk, for a command's next start.

    They lie in `~/.cache/lossattn_jax` (or XDG_CACHE_HOME), up to `_CACHE_BYTES`, the longest unused going
    first. A folder that the user has set in JAX_COMPILATION_CACHE_DIR stays, as does
    JAX_ENABLE_COMPILATION_CACHE=false. Where nothing can be written, nothing is kept.
    """
    config: Any = jax.config  # its options are not known to type checkers
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = root / "lossattn_jax" / f"{platform.machine()}-{_instructions()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter without a home
        return
    if not os.access(folder, os.W_OK):
        return
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    config.update("jax_persistent_cache_min_compile_time_secs", _CACHE_SECONDS)


def _instructions() -> str:
    """Names the processor's instruction set.

    A home may be shared by machines that differ in it.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "any"
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where this process stands among those of a command.

    Attributes:
      coordinator: "host:port" of the first process, where all meet.
      num_processes: how many there are.
      process_id: which this is, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def join_processes(place: Place | None, timeout: int) -> None:
    """Joins the other processes of this command, on any hosts.

    Has to be called before the first computation. From then on `jax.devices()` are those of all
    processes. On CPUs they speak through gloo, which is JAX's own choice.

    Args:
      place: this process's; None: as the cluster says (SLURM, a TPU pod, Open MPI, or JAX's environment
        variables).
      timeout: seconds until all have to be there.

    Raises:
      UserError: they are not, or no cluster says anything.
    """
    # Otherwise JAX takes SIGTERM for itself; here that is the subject of `train.preemption`.
    jax.config.update("jax_enable_preemption_service", False)
    addresses: dict[str, Any] = {}
    if place is not None:
        # JAX is not to add what a cluster says to what the user does.
        addresses = {
            "coordinator_address": place.coordinator,
            "num_processes": place.num_processes,
            "process_id": place.process_id,
            "cluster_detection_method": "deactivate",
        }
    failures: list[Exception] = []

    def join() -> None:
        try:
            jax.distributed.initialize(
                **addresses,
                initialization_timeout=timeout + 3600,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
        except Exception as error:  # for those who wait
            failures.append(error)

    # When its own timeout has passed, JAX does not raise but aborts the process: here that never comes.
    thread = threading.Thread(target=join, name="join processes", daemon=True)
    thread.start()
    thread.join(timeout)
    where = "the cluster's coordinator" if place is None else f"the coordinator {place.coordinator}"
    if thread.is_alive():
        raise UserError(
            f"{where} and all processes were not together within --join_timeout={timeout} seconds; all have "
            "to run and to be given the same address, which is of process 0's host"
        )
    if failures and place is None and isinstance(failures[0], ValueError):
        raise UserError(
            "--distributed found no SLURM step, TPU pod or Open MPI job around this process; "
            "use --coordinator, --num_processes and --process_id"
        )
    if failures:
        reason = " ".join(str(failures[0]).split())[:300] or type(failures[0]).__name__
        raise UserError(f"{where} cannot be joined: {reason}")


def pmap(function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    """`jax.pmap` of `function` over all devices, with the axis named `AXIS`.

    Args:
      function: per-device function; its collectives name `AXIS`.
      donate: positions of arguments whose memory the result may take over.
    """
    return jax.pmap(function, axis_name=AXIS, donate_argnums=donate)


class BriefProgram:
    """As `pmap` of a function, but soon compiled: for what runs once and not long.

    XLA's CPU compiler takes 1.5 s for the draws of fresh parameters, and with fewer optimisations 0.9.
    """

    def __init__(self, function: Callable[..., Any]):
        """Takes a per-device function."""
        self._program = pmap(function)
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def shapes(self, *arguments: Any) -> Any:
        """Shapes and dtypes of what a call gives, which compiles nothing."""
        lowered: Any = self._program.lower(*arguments)  # type: ignore[attr-defined]
        return lowered.out_info

    def __call__(self, *arguments: Any) -> Any:
        """Runs the function on all devices."""
        if jax.default_backend() != "cpu":
            return self._program(*arguments)
        leaves, tree = jax.tree.flatten(arguments)
        key = tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._compiled:
            lowered: Any = self._program.lower(*arguments)  # type: ignore[attr-defined]
            self._compiled[key] = lowered.compile({"xla_backend_optimization_level": 1})
        return self._compiled[key](*arguments)


def describe() -> str:
    """For the log: platform, kind and number of devices, and of processes."""
    kind = jax.devices()[0].device_kind
    return (
        f"{jax.device_count()} {jax.default_backend()} device(s) ({kind}), "
        f"{jax.process_count()} process(es)"
    )


def per_device(batch_size: int, what: str) -> int:
    """Examples per device of a global batch.

    Args:
      batch_size: examples of the global batch, over all processes.
      what: config key of `batch_size`, for the error.

    Raises:
      UserError: the devices cannot share the batch equally.
    """
    if batch_size % jax.device_count():
        raise UserError(
            f"{what} is {batch_size}, but must be a multiple of the number of devices, {jax.device_count()}"
        )
    return batch_size // jax.device_count()


def round_up(batch_size: int) -> int:
    """Rounds a batch size up to a multiple of devices."""
    return -(-batch_size // jax.device_count()) * jax.device_count()


def replicate(tree: Any) -> Any:
    """Copies every leaf to each local device.

    A new leading axis is that of devices.
    """
    sharding = _leading_axis_sharding()
    count = jax.local_device_count()

    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.device_put(np.broadcast_to(leaf[None], (count, *leaf.shape)), sharding)

    return jax.tree.map(put, tree)


def unreplicate(tree: Any) -> Any:
    """Returns the first local device's copy, as NumPy arrays.

    The arrays are copies: a later step may take over the device memory that was read.
    """

    def fetch(leaf):
        # Indexed on the host: on the device that would be a program for each shape.
        copy = np.array(leaf.addressable_shards[0].data)
        return copy.reshape(copy.shape[1:])

    return jax.tree.map(fetch, tree)


def shard(batch: Any) -> Any:
    """Splits this process' part of a batch over its devices.

    Args:
      batch: arrays `[b, ...]` with b a multiple of the number of local devices.

    Returns:
      Arrays `[devices, b / devices, ...]`. The copy may still be under way.
    """
    sharding = _leading_axis_sharding()
    count = jax.local_device_count()
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf.reshape(count, -1, *leaf.shape[1:]), sharding), batch
    )


def shard_steps(batches: Sequence[Any]) -> Any:
    """Shards the batches of k steps, for one program call.

    Args:
      batches: k trees of arrays `[b, ...]`, alike but for their values.

    Returns:
      Arrays `[devices, k, b / devices, ...]`. The copy may still be under way.
    """
    sharding = _leading_axis_sharding()
    count = jax.local_device_count()

    def put(*leaves):
        split = [leaf.reshape(count, -1, *leaf.shape[1:]) for leaf in leaves]
        # A single one needs no copy.
        stack = np.stack(split, axis=1) if len(split) > 1 else split[0][:, None]
        return jax.device_put(stack, sharding)

    return jax.tree.map(put, *batches)


def shard_axis(batch: Any, axis: int) -> Any:
    """Splits arrays over this process' devices along an axis that need not be the first.

    Args:
      batch: arrays on the host; zeros (False) are added behind the axis' end, up to a multiple of devices.
      axis: from 0.

    Returns:
      Arrays of one axis more, `[devices, ...]`. The copy may still be under way.
    """
    sharding = _leading_axis_sharding()
    count = jax.local_device_count()

    def put(leaf):
        more = [(0, 0)] * leaf.ndim
        more[axis] = (0, -leaf.shape[axis] % count)
        whole = np.pad(leaf, more) if more[axis][1] else leaf
        # Part by part: all of them beside one another would be a second copy on the host.
        parts = [part[None] for part in np.split(whole, count, axis=axis)]
        arrays = [
            jax.device_put(part, device)
            for part, device in zip(parts, jax.local_devices(), strict=True)
        ]
        shape = (count, *parts[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, arrays)

    return jax.tree.map(put, batch)


def memory_statistics() -> dict[str, int]:
    """Returns the first local device's memory statistics; empty on CPUs."""
    return jax.local_devices()[0].memory_stats() or {}


def memory_bytes() -> int | None:
    """Memory of a device; None where it has none of its own, or does not say."""
    return memory_statistics().get("bytes_limit")


def gather(tree: Any) -> Any:
    """Undoes `shard`: NumPy arrays `[b, ...]` of this process."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), tree)


def concatenate_processes(tree: Any) -> Any:
    """Concatenates arrays `[b, ...]` of all processes, on each of them.

    The shapes are the same on all.
    """
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def barrier(name: str) -> None:
    """Waits for all processes.

    `name` is the place's, the same on each of them.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def same_everywhere(number: int) -> bool:
    """Whether all processes have come here with the same number."""
    numbers = concatenate_processes(np.array([number], np.int32))
    return bool((numbers == number).all())


def anywhere(here: bool) -> bool:
    """Whether it is true of some process; all have to ask."""
    return bool(concatenate_processes(np.array([here])).any())


class Agreement:
    """A request of any process that all learn at once.

    At the same place of their program.
    """

    def __init__(self) -> None:
        """Starts without a request."""
        self._sums: collections.deque[jax.Array] = collections.deque()

    def is_reached(self, here: bool) -> bool:
        """Whether some process asks for it; all ask equally often.

        What one of several processes wants is known from its third time on. By then the devices have mostly
        counted it, so that none of them waits for the hosts.

        Args:
          here: whether this process does.
        """
        if jax.process_count() == 1:
            return here
        self._sums.append(_sum_program()(replicate(np.int32(here))))
        if len(self._sums) <= _BEHIND:
            return False
        return bool(unreplicate(self._sums.popleft()))


def unroll_length(steps: int) -> int:
    """Chooses `unroll` of `lax.scan` for loops with convolutions' gradients.

    On CPUs XLA gives convolutions in a loop their fast form only if their kernels lie as in the forward
    pass, which those of gradients do not: in a loop they run at a tenth of the speed. Many steps would take
    longer to compile than that costs.
    """
    return steps if jax.default_backend() == "cpu" and steps <= _MOST_UNROLLED else 1


def global_positions(examples: int) -> jax.Array:
    """Returns this device's examples' places in the global batch.

    `[examples]` int32; inside `pmap` only.
    """
    return jax.lax.axis_index(AXIS) * examples + jnp.arange(examples, dtype=jnp.int32)


@functools.cache
def _sum_program() -> Callable[[jax.Array], jax.Array]:
    return pmap(lambda number: jax.lax.psum(number, AXIS))


@functools.cache
def _leading_axis_sharding() -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(AXIS))
