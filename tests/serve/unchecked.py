"""What a process runs first to load any graph at all: only so does one that does not end reach the runtime."""

UNCHECKED = """
import fedlora_serve.session as session
from fedlora.graph.graph_check import CheckedGraph
session.read_checked_graph = lambda graph, *_, **__: CheckedGraph(content=graph.read_bytes(), facts=None)
"""
# ... and there does not stop when it is told.
DEAF = f"""{UNCHECKED}
import fedlora_serve.step_watch as step_watch
step_watch._LAST_WAIT_S = 0.5

class Deaf:
    def __init__(self, session):
        self._session = session
    def __getattr__(self, name):
        return getattr(self._session, name)
    def run(self, outputs, feeds, options):
        return self._session.run(outputs, feeds)
    def run_with_iobinding(self, binding, options):
        self._session.run_with_iobinding(binding)

made = session._session
session._session = lambda *arguments: Deaf(made(*arguments))
"""
