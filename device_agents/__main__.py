"""`python -m device_agents`, the same as `padnas-agent`."""

from device_agents.cli import app

app()
