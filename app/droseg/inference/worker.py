"""The child process of `droseg.inference.supervisor`: `python -m droseg.inference.worker DESCRIPTOR`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from droseg.errors import DrosegError
from droseg.inference.pipeline import Pipeline
from droseg.inference.predictor import Predictor
from droseg.inference.record import CaseResult
from droseg.inference.supervisor import Fatal, Finished, Ready, Setup, Stage, model_of


def main(descriptor: int) -> None:
    """Do what the parent process sends, until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent receives them, too, and decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    connection = Connection(descriptor)
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            connection.send(message)

    setup: Setup = connection.recv()
    try:
        _serve(setup, connection, send)
    except EOFError:
        return
    except Exception as error:
        if setup.debug:
            traceback.print_exc()
        known = isinstance(error, DrosegError)
        text = str(error) if known else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        send(Fatal(type(error).__name__ if known else DrosegError.__name__, text))


def _serve(setup: Setup, connection: Connection, send: Any) -> None:
    predictor = Predictor(setup.bundle, setup.device, **setup.options)
    model = model_of(predictor)
    send(Ready(model, str(predictor.device)))

    def on_result(result: CaseResult) -> None:
        send(result)

    while True:
        batch = connection.recv()
        pipeline = Pipeline(
            predictor,
            setup.out,
            model,
            setup.wanted,
            overwrite=setup.overwrite,
            beside=batch.beside,
            debug=setup.debug,
            on_result=on_result,
            on_stage=lambda case_id, stage: send(Stage(case_id, stage)),
        )
        pipeline.run(batch.cases)
        send(Finished())


def _end_with_parent(parent: int) -> None:
    """End as soon as the parent is gone, also if it was killed."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
