"""Features of images that were computed elsewhere, in and out, so that such a pool needs no pixels.

A .npy holds rows (n, d), the .txt of its name beside it a name on each line; a Parquet table has a
column of names and one of vectors.
"""

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from longtail.images.archives import bounded, column_of
from longtail.images.pixels import reason
from longtail.images.places import PATHS
from longtail.pick import samplers, selection
from longtail.store import paths, runs
from longtail.store.settings import text_of

WITHOUT_VIEWS = [
    name for name, one in samplers.SAMPLERS.items() if one.score in ("", "distance")
]  # they ask for no views of pixels


def holds(path):
    """Whether a file holds features: a .npy of rows, or a Parquet table with a column of vectors
    and none of image bytes; ``ValueError`` where it cannot be read.
    """
    kind = path.suffix.lower() if path.is_file() else ""
    try:
        if kind == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False).ndim == 2
        return kind == ".parquet" and vectors_of(path) is not None
    except ImportError:
        raise
    except Exception as error:  # whatever the readers of both make of foreign bytes
        raise ValueError(f"{path} cannot be read ({reason(error)}); write it again") from error


def vectors_of(path):
    """The column of vectors in a Parquet table; None where it has none."""
    from pyarrow import parquet, types

    schema = parquet.read_schema(path)
    kinds = {
        field.name: field.type
        for field in schema
        if types.is_list(field.type)
        or types.is_large_list(field.type)
        or types.is_fixed_size_list(field.type)
    }
    return next((name for name, kind in kinds.items() if types.is_floating(kind.value_type)), None)


def read_features(path):
    """Names (n strings) and features, a tensor (n, d) that stays in its file where that is a .npy;
    ``ValueError`` where they do not fit.
    """
    if path.suffix.lower() == ".npy":
        beside = path.with_suffix(".txt")
        if not beside.exists():
            raise ValueError(
                f"{path} needs the names of its rows in {beside.name} beside it, one a line"
            )
        names, rows = (
            text_of(beside, "the names").splitlines(),
            np.load(path, mmap_mode="r", allow_pickle=False),
        )
    else:
        from pyarrow import parquet

        vectors, fields = vectors_of(path), parquet.read_schema(path).names
        table = parquet.ParquetFile(path, memory_map=True)
        place = next(
            number
            for number in range(table.metadata.num_columns)
            if table.schema.column(number).path.partition(".")[0] == vectors
        )
        numbers = sum(
            table.metadata.row_group(group).column(place).num_values
            for group in range(table.metadata.num_row_groups)
        )
        bounded(
            4 * numbers, 2, f"the features of {path}; raise it, or write a .npy, which is not read"
        )
        named = next((name for wanted in PATHS for name in fields if name.lower() == wanted), None)
        if named is None:
            raise ValueError(
                f"{path} has the columns {', '.join(fields)}, and none is called "
                f"{', '.join(PATHS[:4])} or {PATHS[-1]}"
            )
        names = [str(name) for name in column_of(path, named)]
        values = table.read([vectors])[vectors].combine_chunks()
        rows = (
            values.flatten().to_numpy().reshape(len(names), -1)
            if len(values.flatten()) % max(1, len(names)) == 0
            else np.zeros((0, 0))
        )
    if (
        len(names) != len(rows)
        or rows.ndim != 2
        or rows.dtype.kind != "f"
        or not rows.dtype.isnative
        or len(set(names)) < len(names)
    ):
        raise ValueError(
            f"{path} has {len(rows)} rows {rows.dtype} {rows.shape[1:]} and {len(set(names))} "
            f"different of {len(names)} "
            f"names; give one vector of floats and one name an image"
        )
    return names, selection.as_rows(rows)


def write_features(path, names, rows):
    """Write features (n, d) and their names, as ``read_features`` reads them; a Parquet table as
    32-bit floats, by groups of rows.
    """
    tiles = (tile.float().numpy(force=True) for tile in rows.split(samplers.COMPARED))
    if path.suffix == ".npy":
        runs.write(path.with_suffix(".txt"), "".join(f"{name}\n" for name in names))
        head = {"descr": "<f4", "fortran_order": False, "shape": tuple(rows.shape)}
        with paths.in_part(path, 4 * rows.numel()) as part, open(part, "wb") as file:
            np.lib.format.write_array_header_1_0(file, head)
            for tile in tiles:  # written, not mapped: a full disk is an error and no signal
                file.write(tile.tobytes())
    else:
        import pyarrow
        from pyarrow import parquet

        schema = pyarrow.schema(
            {"path": pyarrow.string(), "embedding": pyarrow.list_(pyarrow.float32(), rows.shape[1])}
        )
        with (
            paths.in_part(path, 4 * rows.numel()) as part,
            parquet.ParquetWriter(part, schema) as writer,
        ):
            for number, tile in enumerate(tiles):
                vectors = pyarrow.FixedSizeListArray.from_arrays(
                    pyarrow.array(tile.reshape(-1)), rows.shape[1]
                )
                mine = list(names[number * samplers.COMPARED :][: len(tile)])
                writer.write_table(pyarrow.table([mine, vectors], schema=schema))


def features_given(request):
    """Names and features of the seed, names and features of the pool, once they fit the request;
    how many there are is printed.
    """
    (known, seed), (names, pool) = (
        read_features(request.place(request.texts(key)[0]))
        for key in ("seed_images", "pool_images")
    )
    for key, count in (("budget", len(names)), ("prototypes", len(known))):
        if getattr(request, key) > count:
            raise ValueError(
                f"{key} is {getattr(request, key)}, but there are {count} rows for it; lower "
                f"{key}, or give more"
            )
    if seed.shape[1] != pool.shape[1]:
        raise ValueError(
            f"the seed has {seed.shape[1]} features, the pool {pool.shape[1]}; take both from one "
            "encoder"
        )
    print(f"seed: {len(known)} rows of {seed.shape[1]} features; pool: {len(names)}", flush=True)
    return known, seed, names, pool


def pick_by_features(request):
    """Picks by features alone: ``picks.csv`` and ``picks/<sampler>.txt`` in results/<name>/, names
    as the files of features have them.
    """
    results = runs.Results(request.name)
    known, seed, names, pool = features_given(request)
    seed = seed.to(runs.device())
    distance, nothing = samplers.proximity(pool, seed, request.prototypes), torch.zeros(len(names))
    frames = []
    for sampler in request.samplers:
        index = samplers.sample(
            sampler,
            nothing,
            distance,
            pool,
            seed,
            request.budget,
            request.alpha,
            request.ratio,
            request.seed,
        ).cpu()
        cosine, nearest = (normalize(pool[index].to(seed)) @ normalize(seed).T).max(1)
        picked = [names[place] for place in index]
        frames.append(
            pd.DataFrame(
                {
                    "sampler": sampler,
                    "rank": range(1, len(index) + 1),
                    "path": picked,
                    "distance": distance[index].cpu(),
                    "nearest_seed": [known[place] for place in nearest],
                    "similarity": cosine.cpu(),
                }
            )
        )
        runs.write(
            results.root / "picks" / f"{sampler}.txt", "".join(f"{name}\n" for name in picked)
        )
    runs.write(results.root / "picks.csv", pd.concat(frames).to_csv(index=False))
