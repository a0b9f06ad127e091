"""A program of its own: Flower's SuperNode, which ends when it has given up. COMMAND ARGUMENTS..., as for flower-supernode.

After some errors, such as a connection that was cut while TLS began, the SuperNode of flwr 1.42 asks its SuperLink no more
and yet does not end: the thread of its local API lives on. Whoever starts it again has to see it end.
"""

import os
import sys
import traceback

if __name__ == "__main__":
    from flwr.supernode.cli import flower_supernode

    sys.argv = sys.argv[1:]
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
