"""Good input that cases start from: a photograph, weights, data sets and a result folder, made once in a process."""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import os
import shutil
import struct
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.robustness.cases import write_toml

SIDE = 48
METHODS = ["gradcam", "activation"]
METRICS = ["sparsity", "deletion:steps=4", "pointing_game"]
BRIEF = ("--panels", "0", "--resamples", "30", "-q")  # of a report
_FOLDER: list[Path] = []


def folder() -> Path:
    """Where the good input is; made at the first call, in a forked process, since it computes."""
    if not _FOLDER:
        home = Path(tempfile.mkdtemp(prefix="robustness-stock-"))
        _FOLDER.append(home)
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            try:
                _make(home)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("the good input could not be made")
    return _FOLDER[0]


def _make(home: Path) -> None:
    import xattn
    from xattn.cli import app

    os.chdir(home)
    for number in range(4):
        photo(number).save(home / f"photo-{number}.jpg", quality=90)
    shipped = Path(xattn.__file__).parent / "models" / "weights"
    for name in ("cnn", "brnpa"):
        shutil.copy(shipped / f"tiny-{name}.safetensors", home / f"{name}.safetensors")
    (home / "four.safetensors").write_bytes(_of_four(*weights("cnn", home)))
    for part in ("val", "train"):
        parquet(home / "data" / f"{part}-00000-of-00001.parquet", rows())
    write_toml(home / "c.toml", configuration(str(home / "data")))
    app(["benchmark", "c.toml", "--out", "run", "-q"], prog_name="xattn", standalone_mode=False)
    app(["report", "run", *BRIEF], prog_name="xattn", standalone_mode=False)
    shutil.move(home / "run" / "report", home / "report")


def _of_four(header: dict[str, Any], tensors: bytes) -> bytes:
    """The weights of a network of four classes: the first ones."""
    for name in ("head.classifier.bias", "head.classifier.weight"):
        start, stop = header[name]["data_offsets"]
        tensors = tensors[: start + (stop - start) // header[name]["shape"][0] * 4] + tensors[stop:]
        cut = (stop - start) // header[name]["shape"][0] * (header[name]["shape"][0] - 4)
        header[name]["shape"][0] = 4
        for entry in (e for n, e in header.items() if n != "__metadata__"):
            entry["data_offsets"] = [o - cut if o >= stop else o for o in entry["data_offsets"]]
    values = json.loads(header["__metadata__"]["xattn"])
    values["architecture"]["classes"] = 4
    values["spec"]["classes"] = values["spec"]["classes"][:4]
    header["__metadata__"]["xattn"] = json.dumps(values)
    return joined(header, tensors)


def photo(number: int = 0) -> Image.Image:
    """A picture with some structure."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def encoded(number: int = 0, form: str = "PNG", **options: Any) -> bytes:
    """The picture as the contents of a file."""
    stream = io.BytesIO()
    photo(number).save(stream, form, **options)
    return stream.getvalue()


def rows(count: int = 8) -> dict[str, list[Any]]:
    """Columns of a small data set of four classes."""
    return {
        "image": [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(count)],
        "label": [i % 4 for i in range(count)],
        "box": [[5, 5, 30, 30] for _ in range(count)],
    }


def parquet(path: Path, columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write columns as a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns))
    pq.write_table(table.replace_schema_metadata(dict(metadata)) if metadata else table, path)


def configuration(data: str, **more: Any) -> dict[str, Any]:
    """A benchmark of one model on a few images, as nested values."""
    return {
        "methods": list(METHODS),
        "metrics": list(METRICS),
        "data": [{"source": data, "label": "shapes", "limit": 2}],
        "models": [{"name": "tiny-cnn"}],
        "run": {"block": 1, "batch": 1, "device": "cpu"},
        **more,
    }


def weights(name: str = "cnn", home: Path | None = None) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a weights file."""
    data = ((home or folder()) / f"{name}.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, tensors: bytes, length: int | None = None) -> bytes:
    """A weights file of a header, as values or as text, and tensors."""
    text = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tensors


def signed(values: Any) -> str:
    """A manifest or costs as JSON, with the digest that belongs to them: whoever changes them can change that too."""
    if isinstance(values, dict) and "digest" in values:
        rest = {key: value for key, value in values.items() if key != "digest"}
        text = json.dumps(rest, sort_keys=True)
        values = {**rest, "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}
    return json.dumps(values)


def write_part(path: Path, table: Any, metadata: dict[bytes, bytes], *, old: bool = False) -> Path:
    """Replace a part file by other rows, named by its new digest and in the folder of its data set and model.

    Args:
        path: the part to replace.
        table: its rows, a table of pyarrow.
        metadata: what it says about itself.
        old: named as in earlier versions, whose digest was that of the metadata alone.
    """
    import pyarrow.parquet as pq

    path.unlink()
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), stream, compression="zstd")
    content = next(iter(metadata.values())) if old else stream.getvalue()
    digest = hashlib.blake2b(content, digest_size=4 if old else 16).hexdigest()
    folder = path.parent
    names = [table[n][0].as_py() if n in table.column_names and table.num_rows else None for n in ("dataset", "model")]
    if all(isinstance(name, str) for name in names):
        folder = path.parents[1] / cell(*names)
        folder.mkdir(exist_ok=True)
    block = path.name.split("-")[1]
    written = folder / f"block-{block}-{digest}.parquet"
    written.write_bytes(stream.getvalue())
    return written


def cell(dataset: str, model: str) -> str:
    """What the folder of the parts of a data set and a model is called."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{dataset}@{model}")
    digest = hashlib.blake2b(f"{dataset}\0{model}".encode(), digest_size=4).hexdigest()
    return f"{name.encode()[:200].decode(errors='ignore')}-{digest}"


def photograph(home: Path, name: str = "photo.jpg", number: int = 0) -> str:
    """Copy a photograph; its name."""
    shutil.copy(folder() / f"photo-{number}.jpg", home / name)
    return name
