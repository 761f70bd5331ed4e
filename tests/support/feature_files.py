"""Writes feature files in every format and layout."""

import json

import h5py
import ml_dtypes
import numpy as np
import pyarrow
import safetensors.numpy
import tensorstore
from pyarrow import parquet

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def write_clam_h5(path, features, coords):
    """As CLAM's h5_files/: batches are appended, with a chunk for each instance."""
    with h5py.File(path, "w") as file:
        for name, array in {"features": features, "coords": coords.astype(np.int32)}.items():
            half = len(array) // 2
            rest = array.shape[1:]
            dataset = file.create_dataset(
                name, data=array[:half], maxshape=(None, *rest), chunks=(1, *rest)
            )
            dataset.resize(len(array), axis=0)
            dataset[half:] = array[half:]


TRIDENT = {
    "patch_size": 256,
    "patch_size_level0": 512,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "name": "s01",
    "savetodir": "out/20x_256px_0px_overlap",
    "level0_width": 2048,
    "level0_height": 1024,
}


def write_trident_h5(path, features, coords):
    """As TRIDENT's features_ENCODER/: what the coordinates are stands in their attributes."""
    with h5py.File(path, "w") as file:
        for name, array in {"features": features, "coords": coords.astype(np.int64)}.items():
            file.create_dataset(
                name, data=array, maxshape=(None, *array.shape[1:]), chunks=(1, *array.shape[1:])
            )
        file["features"].attrs.update({"name": "s01", "savetodir": "out/features_uni_v1"})
        file["coords"].attrs.update(TRIDENT)


STAMP = {
    "stamp_version": "2.3.0",
    "extractor": "uni2",
    "unit": "um",
    "tile_size_um": 256.0,
    "tile_size_px": 224,
    "code_hash": "0123abcd",
    "feat_type": "tile",
}


def write_stamp_h5(path, features, coords):
    """As `stamp preprocess`: halves, micrometres, attributes of the file."""
    with h5py.File(path, "w") as file:
        file["coords"] = coords.astype(np.float32)
        file["feats"] = features.astype(np.float16)
        file.attrs.update(STAMP)


def write_h5(path, features, coords=None):
    with h5py.File(path, "w") as file:
        file["features"] = features
        if coords is not None:
            file["coords"] = coords


def write_npy(path, features, coords=None):
    np.save(path, features)


def write_npz(path, features, coords=None):
    np.savez(path, **({"features": features} | ({} if coords is None else {"coords": coords})))


def write_packed_npz(path, features, coords=None):
    np.savez_compressed(
        path, **({"features": features} | ({} if coords is None else {"coords": coords}))
    )


def write_safetensors(path, features, coords=None):
    arrays = {"features": np.ascontiguousarray(features)}
    if coords is not None:
        arrays["coords"] = np.ascontiguousarray(coords)
    safetensors.numpy.save_file(arrays, path, {"extractor": "uni2"})


def write_torch(path, features, coords=None):
    import torch

    def tensor(array):
        if array.dtype == BFLOAT16:
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(array))

    torch.save(
        tensor(features)
        if coords is None
        else {"features": tensor(features), "coords": tensor(coords), "slide": "s01"},
        path,
    )


def write_zarr(path, features, coords=None, version=3):
    path.mkdir()
    arrays = {"features": features} | ({} if coords is None else {"coords": coords})
    if version == 3:
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"extractor": "uni2"}}
        (path / "zarr.json").write_text(json.dumps(group))
    else:
        (path / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
        (path / ".zattrs").write_text(json.dumps({"extractor": "uni2"}))
    for name, array in arrays.items():
        write_zarr_array(path / name, array, version)


def write_zarr_array(path, array, version=3):
    chunks = [min(2, size) for size in array.shape]
    metadata = {"shape": array.shape, "chunks": chunks, "dtype": array.dtype.str}
    if version == 3:
        name = "bfloat16" if array.dtype == BFLOAT16 else str(array.dtype)
        grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
        metadata = {"shape": array.shape, "data_type": name, "chunk_grid": grid}
    elif array.dtype == BFLOAT16:
        metadata["dtype"] = "bfloat16"
    spec = {
        "driver": "zarr3" if version == 3 else "zarr",
        "kvstore": {"driver": "file", "path": str(path.absolute())},
        "metadata": metadata,
    }
    tensorstore.open(spec, create=True).result().write(array).result()


def write_zarr_2(path, features, coords=None):
    write_zarr(path, features, coords, version=2)


def write_parquet(path, features, coords=None, rows=2):
    table = {"slide_id": ["s01"] * len(features)}
    if coords is not None:
        table |= {"x": coords[:, 0], "Y": coords[:, 1]}
    table |= {f"f{place}": features[:, place] for place in range(features.shape[1])}
    parquet.write_table(pyarrow.table(table), path, row_group_size=rows)


# By ending: what writes such a file, and the types that it can hold.
FLOATS = ("float16", "bfloat16", "float32", "float64")
WRITERS = {
    "h5": (".h5", write_h5, ("float16", "float32", "float64")),
    "hdf5": (".hdf5", write_h5, ("float32",)),
    "npy": (".npy", write_npy, FLOATS),
    "npz": (".npz", write_npz, FLOATS),
    "packed npz": (".npz", write_packed_npz, FLOATS),
    "safetensors": (".safetensors", write_safetensors, FLOATS),
    "zarr 3": (".zarr", write_zarr, FLOATS),
    "zarr 2": (".zarr", write_zarr_2, FLOATS),
    "parquet": (".parquet", write_parquet, ("float16", "float32", "float64")),
    "pt": (".pt", write_torch, FLOATS),
    "pth": (".pth", write_torch, ("float32",)),
}
