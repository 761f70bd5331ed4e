"""Arrays that `checkpoint.writer` writes beside those that Orbax' own handler does."""

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers

from lossattn_jax.checkpoint import writer
from lossattn_jax.checkpoint.store import Checkpoints

TREE = {
    "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "nested": {"step": np.array(7, np.int32), "key": np.array([1, 2], np.uint32)},
    "half": np.arange(5).astype(ml_dtypes.bfloat16),
    "large": np.arange(4000, dtype=np.float64).reshape(40, 100),
}


def saved(folder, array_handler, **options):
    """Saves `TREE` and returns the names and Zarr descriptions of its arrays."""
    arrays = type_handlers.create_type_handler_registry((np.ndarray, array_handler))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=arrays)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(TREE, **options))
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
    names = store.list().result()
    return {name: store[name] for name in names if name.endswith(b".zarray")}, sorted(names)


def test_arrays_are_stored_as_orbax_stores_them(tmp_path):
    written = saved(tmp_path / "ours", writer._ArrayWriter())
    assert written == saved(tmp_path / "orbax", type_handlers.NumpyHandler())
    assert len(written[0]) == 5
    names = [(tmp_path / side / "_METADATA").read_text() for side in ("ours", "orbax")]
    assert names[0] == names[1]


def test_arrays_larger_than_a_file_are_divided(tmp_path):
    options = {"ocdbt_target_data_file_size": 8000}
    written = saved(tmp_path / "ours", writer._ArrayWriter(), **options)
    assert written == saved(tmp_path / "orbax", type_handlers.NumpyHandler(), **options)
    files = [name.partition(b"/")[0] for name in written[1]]
    assert files.count(b"large") > 2 and files.count(b"kernel") == 2


def test_orbax_reads_what_is_written(tmp_path):
    saved(tmp_path / "item", writer._ArrayWriter())
    with ocp.StandardCheckpointer() as reader:
        restored = reader.restore(tmp_path / "item")
    for name, value in (("kernel", TREE["kernel"]), ("half", TREE["half"])):
        assert restored[name].dtype == value.dtype
        np.testing.assert_array_equal(np.asarray(restored[name]), value)
    assert int(restored["nested"]["step"]) == 7


def test_arrays_that_change_while_saved_are_stored_as_before(tmp_path):
    value = np.zeros(1 << 20, np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"variables": {"array": value}}, None)
        value += 1
        checkpoints.wait()
        restored = checkpoints.restore(1, {"variables": {"array": value}})
    assert not np.asarray(restored["variables"]["array"]).any()
