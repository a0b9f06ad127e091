"""`fedlora`, with the commands of this source tree: python -m tests.faults.command"""

from fedlora.cli import commands, main
from fedlora_client.commands.device import device
from fedlora_server.commands.server import server

if __name__ == "__main__":
    commands.add_command(server)
    commands.add_command(device)
    main()
