"""What a file is, by its first bytes, where it is neither text nor compressed text; and what to do with it."""

from __future__ import annotations

import shlex
from pathlib import Path

HEAD_BYTES = 4096  # of a file that are looked at

_TO_JSONL = (
    "python -c \"import sys, pandas; pandas.{reader}(sys.argv[1]).to_json(sys.argv[2], orient='records', lines=True)\" "
    "{path} {jsonl}"
)
_PARQUET = "a Parquet file; call it .parquet, or convert it (pip install pandas pyarrow): " + _TO_JSONL.replace(
    "{reader}", "read_parquet"
)
_ARROW = "an Arrow file; convert it (pip install pandas pyarrow): " + _TO_JSONL.replace("{reader}", "read_feather")
_DATASET = (
    "an Arrow stream, such as a data set keeps that datasets saved; write it as JSON Lines: "
    "datasets.Dataset.from_file(FILE).to_json(FILE)"
)
_UNPACK = "unpack it, and name the file in it"
_UTF16, _UTF32 = (
    "convert it: iconv -f UTF-16 -t UTF-8 {path} > {jsonl}",
    "convert it: iconv -f UTF-32 -t UTF-8 {path} > {jsonl}",
)

# (the first bytes, what the file is and what to do)
_MAGIC = (
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer, not the data; fetch them: git lfs pull"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard; decompress it first: zstd -d {path}"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4; decompress it first: lz4 -d {path}"),
    (b"\x1f\x9d", "compressed with compress; decompress it first: gunzip {path}"),
    (b"PAR1", _PARQUET),
    (b"ARROW1", _ARROW),
    (b"\xff\xff\xff\xff", _DATASET),
    (b"PK\x03\x04", f"a zip archive, as .xlsx and .docx are too; {_UNPACK}, or save a table as CSV"),
    (b"PK\x05\x06", f"a zip archive without a file; {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {_UNPACK}"),
    (b"Rar!\x1a\x07", f"a RAR archive; {_UNPACK}"),
    (b"%PDF-", "a PDF document; extract its text first: pdftotext {path}"),
    (b"SQLite format 3\x00", "an SQLite database; export a table: sqlite3 -header -csv {path} 'select ...' > data.csv"),
    (b"\x93NUMPY", "a NumPy array, not text; give texts, which the base's own tokenizer reads"),
    (b"\x80\x04\x95", "a Python pickle, which is never opened; write the records as JSON Lines"),
    (b"\x80\x05\x95", "a Python pickle, which is never opened; write the records as JSON Lines"),
    (b"\x89HDF\r\n", "an HDF5 file; write the records as JSON Lines"),
    (b"Obj\x01", "an Avro file; write the records as JSON Lines"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document; save it as CSV or as plain text"),
    (b"\xff\xfe\x00\x00", f"UTF-32 text (little-endian); {_UTF32}"),
    (b"\x00\x00\xfe\xff", f"UTF-32 text (big-endian); {_UTF32}"),
    (b"\xff\xfe", f"UTF-16 text (little-endian); {_UTF16}"),
    (b"\xfe\xff", f"UTF-16 text (big-endian); {_UTF16}"),
)  # fmt: skip
_HTML = ("a page of HTML, such as a server sends in place of a file; download the data again (to learn the page itself, "
         "name it .html)")  # fmt: skip
_HTML_SUFFIXES = (".html", ".htm", ".xhtml")
_NUL_SHARE = 0.4  # of every second byte of UTF-16 in a Latin script


def refused(head: bytes, path: Path) -> str:
    """What a file is that begins with `head`, and what to do with it; empty where it may be text in UTF-8."""
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return _filled(what, path)
    if head[257:262] == b"ustar":
        return _filled(f"a tar archive; {_UNPACK}: tar -xf {{path}}", path)
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:20].lower()
    if begin.startswith((b"<!doctype html", b"<html")) and path.suffix.lower() not in _HTML_SUFFIXES:
        return _HTML
    return _filled(_wide_characters(head), path)


def _wide_characters(head: bytes) -> str:
    """The encoding of text in UTF-16 or UTF-32 that has no byte order mark, by where its zero bytes are."""
    part = head[: len(head) // 4 * 4]
    if len(part) < 8 or part.count(0) < _NUL_SHARE * len(part) / 2:
        return ""
    zeros = [part[first::4].count(0) / (len(part) / 4) for first in range(4)]
    if min(zeros[1:]) > _NUL_SHARE and zeros[0] == 0:
        return f"UTF-32 text (little-endian); {_UTF32.replace('UTF-32', 'UTF-32LE', 1)}"
    if min(zeros[:3]) > _NUL_SHARE and zeros[3] == 0:
        return f"UTF-32 text (big-endian); {_UTF32.replace('UTF-32', 'UTF-32BE', 1)}"
    even, odd = (zeros[0] + zeros[2]) / 2, (zeros[1] + zeros[3]) / 2
    if odd > _NUL_SHARE and even < odd / 4:
        return f"UTF-16 text (little-endian); {_UTF16.replace('UTF-16', 'UTF-16LE', 1)}"
    if even > _NUL_SHARE and odd < even / 4:
        return f"UTF-16 text (big-endian); {_UTF16.replace('UTF-16', 'UTF-16BE', 1)}"
    return ""


def _filled(what: str, path: Path) -> str:
    if path.suffix.lower() in (".parquet", ".arrow", ".feather"):
        other = path.with_suffix(".jsonl")
    else:
        other = path.with_name(f"{path.stem}.utf8{path.suffix}")
    return what.replace("{path}", shlex.quote(str(path))).replace("{jsonl}", shlex.quote(str(other)))
