"""The containers of docker-compose.yml as processes of this machine: its commands, its environment, its proxy.

Only addresses and the places of secrets are others, and PostgreSQL is the one of the tests.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.debian_caddy import running_caddy, words
from benchmarks.postgresql import PostgresqlServer
from benchmarks.processes import Command, free_port
from latency_contract.connection import ServiceConnection
from latency_contract.operators import parse_key
from latency_contract.tables import Purpose
from search_client.latencies import LatencyService

pytestmark = pytest.mark.usefixtures("this_machine")

SERVICES = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())["services"]
PATIENCE_S = 60.0


class Containers:
    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self._database_url = database_url
        self.ports = {name: free_port() for name in ("service-1", "service-2", "converter", "proxy")}
        (folder / "postgres-password").write_text("not asked for at a socket\n")

    def run(self, name: str, *command: str) -> str:
        """`docker compose run --rm NAME COMMAND`: what it prints."""
        words = self._words(command or SERVICES[name]["command"], name)
        done = subprocess.run(
            words, env=self._environment(name), capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        return done.stdout

    @contextmanager
    def up(self, *names: str) -> Iterator[list[Command]]:
        """`docker compose up --wait NAMES`."""
        with ExitStack() as stack:
            commands = []
            for name in names:
                words = self._words(SERVICES[name]["command"], name)
                words = ["127.0.0.1" if word == "0.0.0.0" else word for word in words]
                log = self.folder / f"{name}.log"
                commands.append(stack.enter_context(Command(*words, log=log, environment=self._environment(name))))
            for name, command in zip(names, commands, strict=True):
                self._wait_until_healthy(name, command)
            yield commands

    def _wait_until_healthy(self, name: str, command: Command) -> None:
        if "healthcheck" not in SERVICES[name]:
            return
        kind, program, *arguments = SERVICES[name]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "python")
        check = [sys.executable, *(word.replace(":8000", f":{self.ports[name]}") for word in arguments)]
        deadline = time.monotonic() + PATIENCE_S
        while subprocess.run(check, stderr=subprocess.DEVNULL, check=False).returncode != 0:
            assert command.process.poll() is None, command.log.read_text()
            assert time.monotonic() < deadline, command.log.read_text()

    def _words(self, command: Sequence[str], name: str) -> list[str]:
        program, *arguments = command
        here = {
            "8000": str(self.ports.get(name)),
            "http://proxy:8080": f"http://127.0.0.1:{self.ports['proxy']}",
        }
        return [str(Path(sys.executable).parent / program), *(here.get(word, word) for word in arguments)]

    def _environment(self, name: str) -> dict[str, str]:
        own: dict[str, Any] = SERVICES[name]["environment"]
        here = {key: value.replace("/run/secrets", str(self.folder)) for key, value in own.items()}
        if "PADNAS_DATABASE_URL" in here:
            assert here["PADNAS_DATABASE_URL"] == "postgresql://padnas@postgres:5432/padnas"
            here["PADNAS_DATABASE_URL"] = self._database_url
        return here


def test_a_client_measures_through_the_proxy_and_does_not_notice_a_killed_replica(
    postgresql: PostgresqlServer,
    debian_caddy: Path,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = (parse_key(f"IBConv_K3_E3_H{h}_W8_I8_O8_S1_relu6") for h in (8, 9))
    with postgresql.database(template="template1") as database_url, ExitStack() as stack:
        containers = Containers(tmp_path, database_url)
        with pytest.raises(subprocess.CalledProcessError) as refused:  # an open service would serve the whole network
            containers.run("service-1")
        assert refused.value.returncode == 2

        containers.run("migrate")
        for role in ("agent", "client"):
            token = containers.run("migrate", "padnas-service", "token", "create", "--role", role, "--name", role)
            (tmp_path / f"{role}-token").write_text(token)
        replica, *_ = stack.enter_context(containers.up("service-1", "service-2", "converter"))
        assert SERVICES["proxy"]["command"] == ["caddy", *words("/etc/caddy/Caddyfile")]
        ports = {f"{name}:8000": port for name, port in containers.ports.items() if name != "proxy"}
        url = stack.enter_context(running_caddy(tmp_path, ports, port=containers.ports["proxy"]))
        stack.enter_context(containers.up("agent"))

        monkeypatch.setenv("PADNAS_TOKEN_FILE", str(tmp_path / "client-token"))
        with ServiceConnection(url) as connection:
            service = LatencyService(connection, device=None, client="test", wait=True)
            assert service.measured([first], purpose=Purpose.TABLE, on_progress=lambda _: None)[0].latency_ms > 0
            replica.kill()
            assert service.measured([second], purpose=Purpose.TABLE, on_progress=lambda _: None)[0].latency_ms > 0

        headers = {"Authorization": f"Bearer {(tmp_path / 'client-token').read_text().strip()}"}
        statuses = {httpx.get(f"{url}/v1/devices", headers=headers).status_code for _ in range(20)}
        assert statuses == {200}
        # Where a service without TensorFlow would answer 421, this one finds that the bytes are none of a network.
        assert httpx.post(f"{url}/v1/conversions", content=b"no network", headers=headers).status_code == 422
        assert httpx.get(f"{url}/v1/devices").status_code == 401
