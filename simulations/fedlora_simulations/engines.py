"""Two ways to run one configuration in a simulation; both run the deployed ServerApp and ClientApp."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence

import fedlora_client.answers  # noqa: F401 - torch is loaded here, before devices work side by side
from fedlora.config.run import RunConfig, Scalar
from fedlora.errors import MissingExtraError
from fedlora_client.app import app as client_app
from fedlora_server.app import app as server_app
from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedlora_simulations.grid import InProcessGrid, OnMessage
from fedlora_simulations.nodes import node_configs


def run_in_process(config: RunConfig, *, workers: int, on_push: OnMessage, on_done: OnMessage) -> None:
    """Run on the in-process grid. Raises what the ServerApp raises."""
    flat, run_id = config.flat(), secrets.randbits(62)
    with InProcessGrid(
        client_app,
        flat,
        run_id=run_id,
        nodes=node_configs(config),
        workers=workers,
        on_push=on_push,
        on_done=on_done,
    ) as grid:
        server_app(grid, _context(run_id, flat))


def run_on_flower(config: RunConfig, *, workers: int) -> None:
    """Run on Flower's own simulation runtime, on Ray. Raises MissingExtraError without it."""
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        import ray  # noqa: F401
        from flwr.simulation import run_simulation
    except ImportError:
        raise MissingExtraError("--engine flower needs Ray: pip install 'fedlora[flower-engine]'") from None
    flat = config.flat()
    run_simulation(
        _configured_server(flat),
        _configured_client(flat, node_configs(config)),
        config.simulation.devices,
        backend_config={
            "init_args": {"num_cpus": workers, "include_dashboard": False},
            "client_resources": {"num_cpus": 1},
        },
    )


def _context(run_id: int, flat: Mapping[str, Scalar]) -> Context:
    return Context(run_id, 0, UserConfig(), RecordDict(), UserConfig(flat))


def _configured_server(flat: Mapping[str, Scalar]) -> ServerApp:
    """The ServerApp with the run's configuration, which run_simulation has no argument for."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        server_app(grid, _context(context.run_id, flat))

    return app


def _configured_client(flat: Mapping[str, Scalar], nodes: Sequence[Mapping[str, Scalar]]) -> ClientApp:
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        from fedlora_client.app import app as deployed  # in Ray's worker: an app itself does not travel

        # A context's configuration cannot be changed: the device gets a context of its own over the same state.
        node = UserConfig(nodes[int(context.node_config["partition-id"])])
        mine = Context(context.run_id, context.node_id, node, context.state, UserConfig(flat))
        return deployed(message, mine)

    decorators: tuple[Callable[..., object], ...] = (app.train(), app.evaluate())
    for decorate in decorators:
        decorate(handle)
    return app
