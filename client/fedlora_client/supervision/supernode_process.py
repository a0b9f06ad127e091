"""A program of its own: Flower's SuperNode, which ends when it has given up, and comes back at once: `returning_node.py`.

NODE_FILE COMMAND ARGUMENTS...: where its number is kept, then as for flower-supernode.

After some errors, such as a connection that was cut while TLS began, the SuperNode of flwr 1.42 asks its SuperLink no more
and yet does not end: the thread of its local API lives on. Whoever starts it again has to see it end.
"""

import os
import sys
import traceback
from pathlib import Path

if __name__ == "__main__":
    from flwr.supernode.cli import flower_supernode

    from fedlora_client.supervision.returning_node import return_at_once

    return_at_once(Path(sys.argv[1]))
    sys.argv = sys.argv[2:]
    code = 1
    try:
        flower_supernode()
        print("the SuperNode has given up: its last error says why", flush=True)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # its last words
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
