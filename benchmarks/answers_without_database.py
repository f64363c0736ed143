"""What an answer costs without a database: `python -m benchmarks.answers_without_database FOLDER`.

The same question is read and checked as the service does it, under uvicorn as the service runs it, and answered with
the bytes that the service has answered: FOLDER/SUBJECTS.json. At /bare/SUBJECTS the question is not even read.
"""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response

from latency_contract.tables import LatencyQuery


def app_for(folder: Path) -> FastAPI:
    app = FastAPI()
    answers = {int(path.stem): path.read_bytes() for path in folder.glob("*.json")}

    @app.post("/query")
    def query(question: LatencyQuery) -> Response:
        return Response(answers[len(question.subjects)], media_type="application/json")

    @app.post("/bare/{subjects}")
    def bare(subjects: int) -> Response:
        return Response(answers[subjects], media_type="application/json")

    return app


if __name__ == "__main__":
    config = uvicorn.Config(app_for(Path(sys.argv[1])), port=0, log_level="info", access_log=False)
    uvicorn.Server(config).run()
