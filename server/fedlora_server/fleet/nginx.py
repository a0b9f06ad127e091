"""The nginx configuration of a fleet: what other machines reach of SuperLink, and how much they may send."""

from __future__ import annotations

from fedlora_server.fleet.settings import FleetSettings

MAX_BODY_MB = 8  # Flower sends an array in chunks of 5 MiB, one a request

_TEXT = """\
# Only the Fleet API of SuperLink, over TLS, for bodies of at most {body} MB. Include it in nginx's block http:
#   ln -s {folder}/nginx.conf /etc/nginx/conf.d/fedlora.conf; nginx -t; systemctl reload nginx
limit_req_zone $binary_remote_addr zone=fleet_{port}:1m rate=50r/s;
limit_conn_zone $binary_remote_addr zone=fleet_conn_{port}:1m;

upstream superlink_{port} {{
    server {control};
    keepalive 64;
}}

server {{
    listen {port} ssl;
    listen [::]:{port} ssl;
    server_name {names};

    ssl_certificate {folder}/tls/server.crt;
    ssl_certificate_key {folder}/tls/server.key;
    ssl_protocols TLSv1.2 TLSv1.3;

    # flower-supernode 1.42 presents no client certificate. Where something before it does (stunnel, a second nginx on
    # the device), two lines ask for one:
    # ssl_client_certificate {folder}/tls/ca.crt;
    # ssl_verify_client on;

    client_max_body_size {body}m;
    client_body_timeout 30s;
    client_header_timeout 10s;
    limit_req zone=fleet_{port} burst=200 nodelay;
    limit_conn fleet_conn_{port} 64;
    limit_req_status 429;
    limit_conn_status 429;
    server_tokens off;

    location / {{
        return 404;
    }}

    # A request without a SuperNode's signature is turned away before its body is read.
    location /v1/fleet/ {{
        limit_except POST {{ deny all; }}
        if ($http_flwr_public_key = "") {{ return 401; }}
        if ($http_flwr_signature = "") {{ return 401; }}
        if ($http_flwr_timestamp = "") {{ return 401; }}

        proxy_pass https://superlink_{port};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_ssl_trusted_certificate {folder}/tls/ca.crt;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_ssl_server_name on;
        proxy_read_timeout 120s;
    }}
}}
"""


def nginx_text(settings: FleetSettings) -> str:
    """The nginx.conf of these settings."""
    return _TEXT.format(
        body=MAX_BODY_MB, folder=settings.folder, port=settings.port, control=settings.control,
        names=" ".join(dict.fromkeys((settings.host, *settings.names))),
    )  # fmt: skip
