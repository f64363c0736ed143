"""A service that is closed by its first token while it runs, with its local agent, a client and a revoked one."""

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from benchmarks.processes import running_service
from search_client.cli import app as client_app

pytestmark = pytest.mark.usefixtures("this_machine")

runner = CliRunner()
SMALLEST = Path(__file__).parent / "smallest.toml"


def token(command: str, *arguments: str, folder: Path) -> str:
    database = ["--database-url", f"sqlite:///{folder / 'service.db'}"]
    words = [sys.executable, "-m", "latency_service.cli", "token", command, *arguments, *database]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def test_a_running_service_is_closed_by_its_first_token_and_its_own_agent_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PADNAS_TOKEN", raising=False)
    with running_service(tmp_path, "--with-local-agent") as (service, url):
        service.wait_for_line(r"(measuring on .*)")
        devices = ["devices", "--service", url]
        assert runner.invoke(client_app, devices).exit_code == 0

        secret = token("create", "--role", "client", "--name", "ana", folder=tmp_path)
        refused = runner.invoke(client_app, devices)
        assert refused.exit_code == 1
        assert re.fullmatch(r"A token is needed here\. .*PADNAS_TOKEN.*\n", refused.stderr)

        (tmp_path / "token").write_text(f"{secret}\n")
        monkeypatch.setenv("PADNAS_TOKEN_FILE", str(tmp_path / "token"))
        built = runner.invoke(client_app, ["table", "build", "--service", url, "--space", str(SMALLEST)])
        assert built.exit_code == 0, built.stderr
        assert token("list", folder=tmp_path).split("\n")[1].split()[-1] != "never"

        (agent,) = [p for p in psutil.Process(service.process.pid).children() if "device_agents" in p.cmdline()]
        assert "padnas_" not in " ".join(agent.cmdline())
        token("revoke", "ana", folder=tmp_path)
        refused = runner.invoke(client_app, devices)
        assert (refused.exit_code, refused.stderr) == (
            1,
            "The token 'ana' was revoked. Ask whoever runs this service for a new one.\n",
        )
    assert "leased" in service.log.read_text()
    assert "padnas_" not in service.log.read_text()
