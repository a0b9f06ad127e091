"""The process that reads Parquet, and what the library `datasets` reads: whatever that takes, it costs this process alone.

It is run as a file, with a request, a JSON object, on its standard input. A Parquet file may be anybody's: a page of it
expands to two gigabytes. So it is run within bounds of processor time and memory (`fedlora.files.limited`). It writes a
JSON value a line: for each split an object {"split": name, "columns": [[name, type, whether it is read], ...]}, a list for
each row of what is read, and at last an object that says how it ended: {}, or {"error": a line, "kind": "missing", "data"
or "bound"}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_BATCH_ROWS = 256
_DEPTH = 4  # of lists and structs in one another
_FOOTER_BYTES = 1 << 26


def _is_read(kind: Any, depth: int = 0) -> bool:
    """Whether its values are those that JSON has: text, numbers, true and false, and lists and structs of them."""
    from pyarrow import types

    if depth > _DEPTH:
        return False
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_read(kind.value_type, depth + 1)
    if types.is_struct(kind):
        return all(_is_read(kind.field(place).type, depth + 1) for place in range(kind.num_fields))
    if types.is_dictionary(kind):
        return _is_read(kind.value_type, depth + 1)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    number = types.is_integer(kind) or types.is_floating(kind)
    return bool(text or number or types.is_boolean(kind) or types.is_null(kind))


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def _say_rows(split: str, schema: Any, batches: Any) -> None:
    """`batches(names)` gives the columns of these names, some rows at a time."""
    columns = [[field.name, str(field.type)[:80], _is_read(field.type)] for field in schema]
    _say({"split": split, "columns": columns})
    if not (names := [name for name, _, is_read in columns if is_read]):
        return
    for batch in batches(names):
        values = [batch.column(name).to_pylist() for name in names]
        for row in zip(*values, strict=True):
            _say(row)


def _parquet(request: dict[str, Any]) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(
        request["path"], memory_map=False, thrift_string_size_limit=_FOOTER_BYTES,
        thrift_container_size_limit=request["rows"], page_checksum_verification=True,
    ) as file:  # fmt: skip
        schema = file.schema_arrow
        if len(set(schema.names)) < len(schema.names):
            raise ValueError("two columns have one name")
        if file.metadata.num_rows > request["rows"]:
            raise OverflowError(f"{file.metadata.num_rows} rows; at most {request['rows']} are read")
        _say_rows("", schema, lambda names: file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False))


def _hub(request: dict[str, Any]) -> None:
    import datasets

    datasets.disable_progress_bars()
    name = request["name"]
    saved = any(Path(name, file).is_file() for file in ("dataset_dict.json", "state.json"))
    if saved:
        found = datasets.load_from_disk(name)
    else:
        found = datasets.load_dataset(name, request["config"] or None, revision=request["revision"] or None)
    splits = found if isinstance(found, dict) else {"train": found}
    wanted = [split for split in ("train", "test", "validation") if split in splits]
    for split in wanted or list(splits)[:1]:
        rows = splits[split]
        if rows.num_rows > request["rows"]:
            raise OverflowError(f"its split {split} has {rows.num_rows} rows; at most {request['rows']} are read")
        plain = rows.with_format("arrow")

        def batches(names: list[str], plain: Any = plain) -> Iterator[Any]:
            return iter(plain.select_columns(names).iter(_BATCH_ROWS))

        _say_rows(split, rows.features.arrow_schema, batches)


def _read(request: dict[str, Any]) -> dict[str, str]:
    """How it ended."""
    try:
        (_hub if request["source"] == "hub" else _parquet)(request)
    except ImportError as error:
        return {"kind": "missing", "error": str(error.name or error)}
    except OverflowError as error:
        return {"kind": "bound", "error": str(error)}
    except MemoryError:
        return {"kind": "bound", "error": f"it takes more than {request['memory_bytes'] >> 20} MB of memory"}
    except BrokenPipeError:
        raise
    except Exception as error:  # pyarrow's and datasets' own kinds
        said = str(error).strip().splitlines()
        return {"kind": "data", "error": f"{said[0] if said else type(error).__name__:.300}"}
    return {}


def _main() -> None:
    request = json.load(sys.stdin)
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others take addresses in advance
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    answer = sys.stdout
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogatepass")  # type: ignore[union-attr]
    with suppress(BrokenPipeError):
        _say(_read(request))
        answer.flush()


if __name__ == "__main__":
    _main()
