"""Clients that ask one question again and again, in a process of their own: `python -m benchmarks.simulated_clients …`.

Each has a thread and a connection that stays. How long each answer took is said in JSON, and how many were none.
"""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

JSON = {"Content-Type": "application/json"}


def ask(url: str, question: bytes, *, requests: int) -> tuple[list[float], int]:
    """Seconds that each answer took, and how many requests had another status than 200 or 204."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    times_s, errors = [], 0
    for _ in range(requests):
        started = time.perf_counter()
        connection.request("POST", parts.path, question, JSON)
        response = connection.getresponse()
        response.read()
        times_s.append(time.perf_counter() - started)
        errors += response.status not in (200, 204)
    connection.close()
    return times_s, errors


def main(
    url: str,
    question: Path,
    clients: Annotated[int, typer.Option()] = 1,
    requests: Annotated[int, typer.Option(help="of each client")] = 100,
) -> None:
    """Let clients ask."""
    body = question.read_bytes()
    with ThreadPoolExecutor(clients) as threads:
        answers = list(threads.map(lambda _: ask(url, body, requests=requests), range(clients)))
    times_s = [taken for of_client, _ in answers for taken in of_client]
    print(json.dumps({"times_s": times_s, "errors": sum(errors for _, errors in answers)}))


if __name__ == "__main__":
    typer.run(main)
