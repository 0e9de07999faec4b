"""`clonewave serve`. What needs the serve extra is imported when it runs, not for `--help`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from engine import cluster, commands
from engine.cluster import Cluster
from engine.errors import ConfigError
from engine.serve.keys import SCOPES, add_key
from engine.serve.settings import Limits, Settings

log = logging.getLogger("clonewave.serve")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or ctrl-c; or only add a key."""
    if args.add_key:
        return _add_key(args)
    try:
        from engine.serve.app import build_app
        from engine.serve.server import serve

        if args.wyoming_port:
            import wyoming  # noqa: F401
    except ModuleNotFoundError as error:
        extra = "wyoming" if error.name == "wyoming" else "serve"
        text = f"{error.name} is missing: pip install 'clonewave[{extra}]'"
        raise ConfigError(text) from error
    level = logging.WARNING if args.quiet else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    limits = Limits(requests_per_minute=args.rate_limit, text_chars=args.max_chars)
    settings = Settings(
        host=args.host, port=args.port, api_key_file=args.api_key_file, insecure=args.insecure,
        voices=args.voices, metrics_host=args.metrics_host, metrics_port=args.metrics_port,
        wyoming_host=args.wyoming_host, wyoming_port=args.wyoming_port,
        drain_lag_s=args.drain_lag, drain_s=args.drain, limits=limits,
    )  # fmt: skip
    check_bind(settings)
    if (of := cluster.of_arguments(args)) is not None:
        return _serve_cluster(args, settings, of)
    app = build_app(commands._engine(args), settings=settings)
    log.info("http://%s:%d  page /, API /v1/audio/speech", settings.host, settings.port)
    tls = {"ssl_certfile": args.tls_cert, "ssl_keyfile": args.tls_key} if args.tls_cert else {}
    return serve(app, settings, **tls)


def _serve_cluster(args: argparse.Namespace, settings: Settings, of: Cluster) -> int:
    from engine.serve.cluster import serve

    if args.metrics_port or args.wyoming_port:
        raise ConfigError("--metrics-port and --wyoming-port: of one process, not with --replicas")
    tls = {"ssl_certfile": args.tls_cert, "ssl_keyfile": args.tls_key} if args.tls_cert else {}
    return serve(settings, of, **tls)


def check_bind(settings: Settings) -> None:
    """Raise ConfigError rather than let strangers clone voices."""
    if not settings.loopback and settings.open_to_all and not settings.insecure:
        raise ConfigError(
            f"--host {settings.host} is reachable from other machines: give --api-key-file "
            "(`clonewave serve --add-key NAME` makes one), or --insecure if all may do everything"
        )


def _add_key(args: argparse.Namespace) -> int:
    if args.api_key_file is None:
        raise ConfigError("--add-key needs --api-key-file: where to keep its hash")
    key = add_key(args.api_key_file, args.add_key, args.scopes)
    print(key)
    log.warning("%s: added %s; the key is shown this once", args.api_key_file, args.add_key)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="0.0.0.0 for every machine (default: 127.0.0.1)")
    add("--port", type=int, default=8000, help="default: 8000")
    add("--api-key-file", type=Path, metavar="FILE", help="who may ask; without it, only this "
        "machine, and everything")  # fmt: skip
    add("--add-key", metavar="NAME", help="make a key, print it once, add its hash to the file")
    add("--scopes", default="speech,voices:write", help=f"of --add-key, of {','.join(SCOPES)}")
    add("--insecure", action="store_true", help="serve other machines without keys")
    add("--voices", type=Path, metavar="DIR", help="voice store (default: in your data folder)")
    add("--metrics-port", type=int, default=0, help="Prometheus /metrics there (default: off)")
    add("--metrics-host", default="127.0.0.1", help="default: 127.0.0.1")
    add("--wyoming-port", type=int, default=0, help="Home Assistant's protocol there, usually "
        "10200 (default: off)")  # fmt: skip
    add("--wyoming-host", default="127.0.0.1", help="the protocol knows no keys: whoever reaches "
        "it may speak (default: 127.0.0.1)")  # fmt: skip
    limits = Limits()
    add("--rate-limit", type=int, default=limits.requests_per_minute, metavar="N",
        help="requests a minute and key, 0 = any (default: %(default)s)")  # fmt: skip
    add("--max-chars", type=int, default=limits.text_chars, metavar="N",
        help="of one request's text (default: %(default)s)")  # fmt: skip
    add("--drain-lag", type=float, default=5.0, metavar="S",
        help="after SIGTERM, go on accepting for so long (default: %(default)s)")  # fmt: skip
    add("--drain", type=float, default=30.0, metavar="S",
        help="then finish what is in flight for so long (default: %(default)s)")  # fmt: skip
    add("--tls-cert", metavar="FILE", help="certificate chain; or let a proxy do TLS")
    add("--tls-key", metavar="FILE", help="its private key")
    cluster.add_arguments(parser)
    commands._engine_arguments(parser)
