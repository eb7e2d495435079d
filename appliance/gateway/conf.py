"""nginx's configuration, as a pure function of the wanted routes and a few facts of the machine.

What this keeps true: what nginx tells the daemon about the client (address, scheme, host) never comes from the client;
a serving process never sees the dashboard's cookie and can set none; only a websocket may change the protocol.

Limits against slow and greedy clients are here because the daemon's HTTP server has none: a header must be there within
10 s, a pause in a body may last 60 s, a peer may hold 200 requests at once. nginx takes in a body before anybody knows
whose it is: 1 MiB of a page's form or a sign-in, 10 MiB of the API's JSON, on a disk and not in memory.

Why: a configuration that is a value can be compared, shown and tested without a running nginx.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.config import Config


@dataclass(frozen=True)
class Route:
    """`/serving/<deployment_id>/REST` is answered by what listens on `port`, which is asked for `/REST`."""

    deployment_id: str
    port: int


@dataclass(frozen=True)
class Facts:
    """What the configuration needs of the machine. `ca_pem` is None where the administrator's certificate is used."""

    certificate: Path
    key: Path
    fingerprint: str
    ca_pem: str | None
    user: str
    ipv6: bool
    header_timeout_s: int = 10


_ROUTES = "# Routes: "


def bodies_dir(config: Config) -> Path:
    """Where nginx's workers keep a request's body that is larger than a buffer.

    On a disk: /run is memory, which strangers could fill. Not below the data directory, which is closed to the workers.
    """
    return config.log_dir / "gateway"


# -- the configuration -------------------------------------------------------------------------------------------------


def render(routes: Sequence[Route], config: Config, facts: Facts) -> str:
    """nginx's whole configuration for `routes`; the same text for the same routes in whatever order."""
    ordered = sorted(routes, key=lambda route: route.deployment_id)
    for route in ordered:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", route.deployment_id):
            raise ValueError(f"not a deployment's id: {route.deployment_id!r}")
    locations = "\n".join([*(_serving_location(route) for route in ordered), *_dashboard_locations(config, facts)])
    upstreams = "\n".join(_serving_upstream(route, config) for route in ordered)
    return f"""# Made by Appliance; every change here is overwritten. The certificate: {facts.fingerprint}
{_ROUTES}{json.dumps([[route.deployment_id, route.port] for route in ordered])}
user {facts.user};
worker_processes 4;  # a reverse proxy on one server; `auto` would start one for each of a hundred cores
worker_shutdown_timeout 300s;
worker_rlimit_nofile 16384;
pid {_quoted(str(config.run_dir / "nginx.pid"))};
events {{ worker_connections 4096; }}
http {{
{_http_settings(config, facts)}
upstream daemon {{
    server {_quoted(f"unix:{config.daemon_socket}")} max_fails=0;
    keepalive 16;
    keepalive_timeout 4s;  # uvicorn closes an idle connection after 5
}}
{upstreams}
server {{
    listen {_at(config.https_address, config.https_port)} ssl http2 default_server{_both(config.https_address)};
    ssl_certificate {_quoted(str(facts.certificate))};
    ssl_certificate_key {_quoted(str(facts.key))};
    error_page 497 =308 https://$http_host$request_uri;
{locations}
}}
server {{
    listen 127.0.0.1:{config.http_port} default_server;
{f"    listen [::1]:{config.http_port} default_server;" if facts.ipv6 else ""}
{locations}
}}
}}
"""


def routes_of(text: str) -> tuple[Route, ...]:
    """The routes that `render` made the text of; none where it says nothing of them."""
    line = next((line for line in text.splitlines() if line.startswith(_ROUTES)), _ROUTES + "[]")
    return tuple(Route(deployment_id, port) for deployment_id, port in json.loads(line.removeprefix(_ROUTES)))


def _http_settings(config: Config, facts: Facts) -> str:
    temporary = bodies_dir(config)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "\n".join(f"{kind}_temp_path {_quoted(str(temporary / kind))};" for kind in kinds)
    down = {
        "code": "SERVICE_UNAVAILABLE",
        "message": "The appliance's daemon does not answer; see `applianced doctor`.",
    }
    return f"""access_log off;
server_tokens off;
default_type application/octet-stream;
{paths}
proxy_max_temp_file_size 0;
client_header_timeout {facts.header_timeout_s}s;
client_body_timeout 60s;
send_timeout 60s;
reset_timedout_connection on;
keepalive_timeout 75s;
keepalive_requests 10000;
large_client_header_buffers 4 16k;
client_max_body_size 1m;
limit_conn_zone $binary_remote_addr zone=peers:4m;
limit_conn peers 200;
limit_conn_status 429;
limit_conn_log_level warn;
ssl_protocols TLSv1.2 TLSv1.3;
ssl_session_cache shared:appliance:4m;
ssl_session_tickets off;
sendfile on;
tcp_nodelay on;
proxy_http_version 1.1;
proxy_connect_timeout 5s;
proxy_read_timeout 300s;
proxy_send_timeout 300s;
# Only a websocket may change the protocol; anything else (h2c) would step around this configuration.
map $http_upgrade $upgrade {{ default ""; ~*^websocket$ websocket; }}
map $http_upgrade $upgrade_or_none {{ default ""; ~*^websocket$ upgrade; }}
map $http_accept $down_page {{ default @down_json; ~*text/html @down_html; }}
map $request_uri $down_json {{ default {_quoted(json.dumps(down))}; }}"""


_FORWARDED = """        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header X-Forwarded-Port "";
        proxy_set_header X-Forwarded-Prefix "";
        proxy_set_header X-Real-IP "";
        proxy_set_header Forwarded "";
        proxy_set_header X-Original-URL "";
        proxy_set_header X-Rewrite-URL "";"""

_TO_DAEMON = f"""{_FORWARDED}
        proxy_set_header Upgrade $upgrade;
        proxy_set_header Connection $upgrade_or_none;
        proxy_pass http://daemon;"""

_DOWN_HTML = (
    "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5><title>Appliance</title>"
    "<body><h1>The appliance does not answer</h1><p>Its daemon is starting, or has stopped. This page tries again "
    "every five seconds. On the server, <code>applianced doctor</code> says what is wrong.</p></body></html>"
)


def _dashboard_locations(config: Config, facts: Facts) -> Iterator[str]:
    """Everything that is not a deployment goes to the daemon; bodies of any size only where they are streamed."""
    if facts.ca_pem is not None:
        yield f"""    location = /ca.crt {{
        default_type application/x-x509-ca-cert;
        add_header Content-Disposition 'attachment; filename="appliance-ca.crt"';
        return 200 {_quoted(facts.ca_pem)};
    }}"""
    yield f"""    error_page 502 503 504 = $down_page;
    error_page 413 = @too_large;
    error_page 429 = @too_many;
    location / {{
{_TO_DAEMON}
    }}
    location ~ "^/deployments/[^/]+/try$" {{  # a tensor that somebody pastes
        client_max_body_size 10m;
{_TO_DAEMON}
    }}
    location /v1/ {{
        client_max_body_size 10m;
{_TO_DAEMON}
    }}
    location /v1/auth/ {{
{_TO_DAEMON}
    }}
    location ~ "^/(git/|[^?]+\\.git/)" {{
        client_max_body_size 0;
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_read_timeout 1h;
{_TO_DAEMON}
    }}
    location ~ "^/(.+/)?(files|upload|uploads)(/|$)" {{
        client_max_body_size {config.max_upload_mib}m;
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_read_timeout 1h;
{_TO_DAEMON}
    }}
    location ~ "^/(v1/.*/logs/stream|(.*/)?live)$" {{
        proxy_buffering off;
        proxy_read_timeout 1h;
{_TO_DAEMON}
    }}
    location ^~ /serving/ {{
        default_type application/json;
        return 404 {_json("NOT_FOUND", "No deployment serves at this address; it may be stopped or deleted.")};
    }}
    location @down_json {{
        internal;
        default_type application/json;
        add_header Retry-After 5 always;
        return 503 $down_json;
    }}
    location @down_html {{
        internal;
        default_type text/html;
        add_header Retry-After 5 always;
        return 503 {_quoted(_DOWN_HTML)};
    }}
    location @serving_down {{
        internal;
        default_type application/json;
        return 503 {_json("SERVICE_UNAVAILABLE", "The deployment does not answer; see its state on the dashboard.")};
    }}
    location @too_large {{
        internal;
        default_type application/json;
        return 413 {_json("PAYLOAD_TOO_LARGE", "The request's body is larger than this address takes.")};
    }}
    location @too_many {{
        internal;
        default_type application/json;
        add_header Retry-After 1 always;
        return 429 {_json("TOO_MANY_REQUESTS", "More than 200 requests at once from one address; try again later.")};
    }}"""


def _serving_upstream(route: Route, config: Config) -> str:
    # A replica that is leaving answers what reaches it, and holds idle connections for longer than this.
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.deployment_address, config.deployment_address)  # noqa: S104 - a comparison, not a bind
    return f"""upstream serving_{route.deployment_id} {{
    server {_at(address, route.port)} max_fails=0;
    keepalive 32;
    keepalive_timeout 5s;
}}"""


def _serving_location(route: Route) -> str:
    """The sandbox policy is there because the answer comes from the dashboard's origin, and a model may say anything."""
    return f"""    location ^~ /serving/{route.deployment_id}/ {{
        client_max_body_size 0;
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_read_timeout 600s;
{_FORWARDED}
        proxy_set_header Connection "";
        proxy_set_header Upgrade "";
        proxy_set_header Cookie "";
        proxy_hide_header Set-Cookie;
        proxy_hide_header Clear-Site-Data;
        proxy_hide_header Service-Worker-Allowed;
        add_header Content-Security-Policy sandbox always;
        add_header X-Content-Type-Options nosniff always;
        error_page 502 503 504 = @serving_down;
        error_page 429 = @too_many;
        proxy_pass http://serving_{route.deployment_id}/;
    }}"""


def _json(code: str, message: str) -> str:
    return _quoted(json.dumps({"code": code, "message": message}))


def _quoted(text: str) -> str:
    """A text as one word of nginx's language, which has no way to write a dollar sign in a variable's place."""
    assert "$" not in text, text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _both(address: str) -> str:
    return " ipv6only=off" if address == "::" else ""
