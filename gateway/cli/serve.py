"""`loragate serve`: flags → settings → the gateway process."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click


@click.command(epilog="Example: loragate serve --engine http://127.0.0.1:9000")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings file, as configs/gateway.yaml."
)
@click.option("--engine", "engines", multiple=True, metavar="URL", help="A running vLLM; repeatable for replicas.")
@click.option("--host", help="Public address.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Public port.  [default: 8000]")
@click.option("--admin-host", help="Admin address.  [default: 127.0.0.1]")
@click.option("--admin-port", type=click.IntRange(0, 65535), help="Admin port.  [default: 8001]")
@click.option("--admin-allow-remote", is_flag=True, help="Allow an admin address that other machines can reach.")
@click.option("--metrics-host", help="Address for /metrics alone.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Port for /metrics alone.  [default: off]")
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Database, keys, adapters.")
def serve(config: Path | None, **flags: Any) -> None:
    """Run the gateway alone until SIGTERM or Ctrl-C, in front of engines that already run."""
    from gateway import heap

    heap.hold()
    from gateway import server, settings
    from gateway.local.locks import hold
    from gateway.local.places import Places

    loaded = settings.load(os.environ, file=config, flags=as_settings(**flags))
    places = Places(loaded.data_dir)
    places.prepare()
    taken = (
        f"loragate already runs here (process {{pid}}) with the data directory {places.data}. "
        "Stop it first, or give this one another --data-dir."
    )
    # On PostgreSQL several gateways share a data directory (docs/fleet.md); SQLite is for one.
    with hold(places.lock, taken) if loaded.database.startswith("sqlite") else nullcontext():
        raise SystemExit(server.run(loaded))


def as_settings(
    *,
    engines: tuple[str, ...] = (),
    host: str | None = None,
    port: int | None = None,
    admin_host: str | None = None,
    admin_port: int | None = None,
    admin_allow_remote: bool = False,
    metrics_host: str | None = None,
    metrics_port: int | None = None,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Flags in the shape of the settings file; what was not given is None and changes nothing."""
    return {
        "data_dir": None if data_dir is None else str(data_dir),
        "public": {"host": host, "port": port},
        "admin": {"host": admin_host, "port": admin_port, "allow_remote": admin_allow_remote or None},
        "metrics": {"host": metrics_host, "port": metrics_port},
        "engines": [{"url": url} for url in engines] or None,
    }
