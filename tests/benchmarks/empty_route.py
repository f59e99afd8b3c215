"""The floor of all HTTP: a FastAPI route that reads the body and answers 200, under Jethook's uvicorn settings."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Request, Response

app = FastAPI()


@app.post("/")
async def receive(request: Request) -> Response:
    await request.body()
    return Response()


if __name__ == "__main__":
    # As in app/serving.py.
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False,
        log_config=None, server_header=False, timeout_keep_alive=75,
    )  # fmt: skip
