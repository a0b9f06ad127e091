"""The trainer's process: the socket, and what is done with its questions. It is started by its module's name."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

from fedlora.errors import FedloraError
from fedlora.files.at_rest import use_key

from fedlora_client.service.config import DeviceConfig, read_device
from fedlora_client.service.logs import log_into
from fedlora_client.service.peers import Peers
from fedlora_client.service.socket_server import SocketServer
from fedlora_client.service.state import StateFolder

log = logging.getLogger("fedlora.device")
ROLE = "trainer"
_LAST_WAIT_S = 4.0  # for the work to save what it did


def run_trainer(config: DeviceConfig) -> None:
    """Answer until SIGTERM or SIGINT, then end within seconds. Raises FedloraError where the device cannot work at all."""
    use_key(config.device.at_rest_key)
    folder = StateFolder(config.state)
    with folder.held(ROLE):
        log_into(config.state / "log", ROLE)
        # Here: whoever only asks about a device does without torch, which takes seconds to load.
        from fedlora_client.service.check import data_hindrance, opened_base
        from fedlora_client.service.work import DeviceWork

        work = DeviceWork(config)
        peers = Peers.named(config.device.peers, config.device.group)
        server = SocketServer(
            Path(config.device.socket), work, peers=peers, name=config.device.name,
            max_data_bytes=config.device.max_message_mb << 20, busy_s=config.device.busy_s,
        )  # fmt: skip
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        # Whoever does not answer is waited for until a round's deadline: one without a base says that it has none.
        fingerprint, damage = opened_base(config)
        work.told.say(base_fingerprint=fingerprint, base_error=damage)
        log.info("%s listens at %s, with the base %s", config.device.name, config.device.socket, config.device.base)
        if damage:
            log.error("each question is refused until the base is mended: %s", damage)
        if lacking := data_hindrance(config):
            log.warning("there is nothing to train on yet: %s", lacking)
        server.serve()
        until = time.monotonic() + _LAST_WAIT_S
        while server.is_working and time.monotonic() < until:
            time.sleep(0.05)
        log.info("%s ends", config.device.name)
        if server.is_working:  # in the middle of a long product: its state was saved some steps ago
            os._exit(0)


def main() -> None:
    try:
        run_trainer(read_device(Path(sys.argv[1])))
    except (FedloraError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
