"""A key of the Linux kernel's keyring (keyrings(7)), by the system calls themselves: libc has no functions for them.

A key that `keyctl padd user NAME @u` or `@s` put there lies in the kernel's memory, on no disk, and is gone when the
machine is off.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

# request_key and keyctl, by machine: asm/unistd_64.h, and asm-generic/unistd.h for what is newer.
_CALLS = {"x86_64": (249, 250), "aarch64": (218, 219), "riscv64": (218, 219)}
_READ = 11  # KEYCTL_READ


def read_keyring(name: str, max_bytes: int) -> bytes:
    """The payload of the key of type `user` and that name, which this process may read. Raises OSError."""
    numbers = (
        _CALLS.get(platform.machine()) if platform.system() == "Linux" and ctypes.sizeof(ctypes.c_void_p) == 8 else None
    )
    if numbers is None:
        raise OSError(errno.ENOSYS, f"the keyring is read on 64-bit Linux alone, this is {platform.machine()}")
    request_key, keyctl = numbers
    serial = _call(request_key, b"user", os.fsencode(name), None, ctypes.c_int(0))
    content = ctypes.create_string_buffer(max_bytes)
    size = _call(keyctl, ctypes.c_int(_READ), ctypes.c_int(serial), content, ctypes.c_size_t(max_bytes))
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes} bytes")
    return content.raw[:size]


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
