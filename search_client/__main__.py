"""`python -m search_client`, the same as `padnas-client`."""

from search_client.cli import app

app()
