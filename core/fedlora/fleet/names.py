"""Names of devices and addresses of servers, as a fleet writes them."""

from __future__ import annotations

import ipaddress
import re

from fedlora.errors import BundleError

MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?\Z")


def check_device_name(name: str) -> str:
    """The name, which is fit for a file's name and a line of a log. Raises BundleError for any other."""
    if not (isinstance(name, str) and len(name) <= MAX_NAME and _NAME.match(name)):
        raise BundleError(
            f"name: {name!r:.80} is no name of a device; give 1 to {MAX_NAME} letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return name


def is_host(text: str) -> bool:
    """Whether it is a host name, an IPv4 address, or an IPv6 address without brackets."""
    if is_ip(text):
        return True
    is_number = re.fullmatch(r"[0-9.]+", text) is not None  # 256.1.1.1 is no name either
    return len(text) <= 253 and not is_number and _HOST_NAME.match(text) is not None


def is_ip(text: str) -> bool:
    """Whether it is an IPv4 address, or an IPv6 address without brackets and zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT or [IPV6]:PORT. Raises BundleError for anything else."""
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_bracketed, is_v6 = bare != host, ":" in bare
    is_port = re.fullmatch(r"[1-9][0-9]{0,4}", port) is not None and int(port) <= 65535
    if not (is_port and is_host(bare) and is_bracketed == is_v6):
        raise BundleError(
            f"superlink: {address!r:.120} is no address; give HOST:PORT, or [IPV6]:PORT, without https:// before it"
        )
    return bare, int(port)


def joined_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
