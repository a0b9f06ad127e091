"""The process in which a stranger's tokenizer is opened for the first time, and given texts: it may end, and ends alone.

It is run as a file within bounds (`fedlora.files.limited`): `tokenizer_child.py MODULE`, the tokenizer.json on its standard
input. An exception of the library is no reason to end: whoever opens the tokenizer next makes one of ours of it.
"""

from __future__ import annotations

import sys
from importlib import import_module

TEXTS = (
    "", "a", "The quick brown fox jumps over 13 lazy dogs.\n\tdef f(x): return x**2 # 0.5e-3", " " * 500, "a" * 500,
    "ab " * 200, "1234567890" * 50, "\u00e9\u0301\ufb03\u1e9b\u0323 \u4e2d\u6587\u3042\u0e01\u0e33",
    "\x00\x01\ufeff\u2028\ufffd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "<s></s><|endoftext|>[UNK]\u2581\u0120",
)  # fmt: skip


def _main(module: str) -> None:
    library = import_module(module)
    content = sys.stdin.buffer.read()
    tokenizer = library.Tokenizer.from_buffer(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for text in TEXTS:
        try:
            tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False)
        except MemoryError:
            raise
        except Exception:
            continue


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except ImportError:
        sys.exit(2)
    except MemoryError:
        sys.exit(1)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
