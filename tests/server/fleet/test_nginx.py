"""The nginx configuration is one that nginx takes, and lets nothing but the Fleet API through."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fedlora_server.fleet.nginx import nginx_text
from fedlora_server.fleet.settings import FleetSettings

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


def test_only_the_fleet_api_is_passed_on(fleet: FleetSettings) -> None:
    text = nginx_text(fleet)
    assert text.count("proxy_pass") == 1
    assert text.index("location /v1/fleet/") < text.index("proxy_pass")
    assert "return 404" in text
    assert fleet.at("nginx.conf").read_text() == text
    assert "server_name fleet.example.org 10.0.0.7;" in text


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_takes_it(fleet: FleetSettings, tmp_path: Path) -> None:
    whole = tmp_path / "whole.conf"
    whole.write_text(
        f"pid {tmp_path}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; include {fleet.at('nginx.conf')}; }}\n"
    )
    result = subprocess.run(
        [str(NGINX), "-t", "-c", str(whole)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
