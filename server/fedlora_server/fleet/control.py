"""SuperLink's Control API, as `flwr` itself calls it: what it answers, in our words. Flower's types stop here."""

from __future__ import annotations

import ssl
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedlora.config.run import Scalar
from fedlora.errors import RunError

from fedlora_server.fleet.device_keys import as_pem, from_pem
from fedlora_server.fleet.settings import FleetSettings

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

UNREGISTERED, ONLINE = "unregistered", "online"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A SuperNode as SuperLink knows it."""

    node: int
    public_key: str
    status: str  # registered, online, offline or unregistered


class Control:
    """Calls of one SuperLink. Each raises RunError where it does not answer, or refuses."""

    def __init__(self, client: ControlHttpClient, address: str) -> None:
        self._client, self._address = client, address

    def nodes(self) -> list[Node]:
        """Every node that was ever registered by a key."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._told("flwr supernode list"):
            answer = self._client.ListNodes(ListNodesRequest())
        return [
            Node(node=info.node_id, public_key=from_pem(info.public_key), status=info.status)
            for info in answer.nodes_info
            if info.public_key
        ]

    def register(self, public_key: str, name: str) -> int:
        """Let the SuperNode with that key in, and return its node."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with self._told("flwr supernode register"):
            return self._client.RegisterNode(RegisterNodeRequest(public_key=as_pem(public_key), name=name)).node_id

    def unregister(self, node: int) -> None:
        """Let it in no more."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with self._told("flwr supernode unregister"):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def start_run(self, app: str, fab_hash: str, config: Mapping[str, Scalar]) -> int:
        """Start a run of the app that SuperLink has under that digest, and return the run's number."""
        from flwr.common.serde import user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.fab_pb2 import Fab

        request = StartRunRequest(
            app_spec=app, fab=Fab(hash_str=fab_hash), override_config=user_config_to_proto(dict(config))
        )
        with self._told("flwr run"):
            answer = self._client.StartRun(request)
        if not answer.run_id:
            raise RunError(f"SuperLink at {self._address} started no run; see logs/superlink.log, and try again")
        return answer.run_id

    def status(self, run: int) -> str:
        """pending, starting, running, finished:completed, finished:failed or finished:stopped; "" for one it never had."""
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._told("flwr list"):
            found = self._client.ListRuns(ListRunsRequest()).run_dict.get(run)
        if found is None:
            return ""
        return ":".join(part for part in (found.status.status, found.status.sub_status) if part)

    def log(self, run: int, after: float) -> Iterator[tuple[str, float]]:
        """(text, its time) of what the run's ServerApp said after a time, until the run is over."""
        from flwr.proto.control_pb2 import StreamLogsRequest

        with self._told("flwr log"):
            for part in self._client.StreamLogs(StreamLogsRequest(run_id=run, after_timestamp=after)):
                yield part.log_output, part.latest_timestamp

    def stop_run(self, run: int) -> None:
        """End a run, if it has not ended."""
        from flwr.proto.control_pb2 import StopRunRequest

        with self._told("flwr stop"):
            self._client.StopRun(StopRunRequest(run_id=run))

    @contextmanager
    def _told(self, command: str) -> Iterator[None]:
        import httpx
        from flwr.supercore.error import FlowerError

        try:
            yield
        except httpx.HTTPStatusError as error:
            refused = FlowerError.from_json(error.response.text)
            said = f"{refused.message} {refused.public_details or ''}".strip() if refused else f"{error}"
            raise RunError(
                f"SuperLink refused {command}: {' '.join(said.split())}; see logs/superlink.log, and try again"
            ) from None
        except (httpx.HTTPError, OSError, ValueError) as error:
            said = str(error) or type(error).__name__
            raise RunError(
                f"SuperLink at {self._address} does not answer {command}: {said}; start it: fedlora server run"
            ) from None


@contextmanager
def control_of(settings: FleetSettings) -> Iterator[Control]:
    """The Control API of the fleet's SuperLink, over TLS."""
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    with ControlHttpClient.from_server_address(
        settings.control,
        insecure=False,
        root_certificates=settings.at("tls", "ca.crt").read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    ) as client:
        yield Control(client, settings.control)


def is_up(settings: FleetSettings, timeout_s: float = 2.0) -> bool:
    """Whether the fleet's SuperLink, and no other, answers."""
    try:
        context = ssl.create_default_context(cafile=str(settings.at("tls", "ca.crt")))
        url = f"https://{settings.control}/health"
        with urllib.request.urlopen(url, timeout=timeout_s, context=context) as answer:  # nosec B310
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def wait_until_up(settings: FleetSettings, timeout_s: float, is_over: Any = lambda: False) -> bool:
    """Whether SuperLink answered before the time was over, or `is_over` said so."""
    deadline = time.monotonic() + timeout_s
    while not is_over() and time.monotonic() < deadline:
        if is_up(settings):
            return True
        time.sleep(0.2)
    return False
