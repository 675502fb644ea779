"""`bench/run.py`, command after command: what is imported once takes most of a short one. Each runs in a fork of this
process, so that it finds things as in a process of its own.

A line in: {"arguments": [...], "environment": {...}, "folder": "..."}. A line out: {"code", "output", "errors"}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

RUN = Path(__file__).resolve().parents[2] / "bench" / "run.py"


def load() -> Any:
    """bench/run.py as it stands when it is started, with what nearly every command imports."""
    spec = importlib.util.spec_from_file_location("bench_run", RUN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.find_modules()
    from bench.lab import Lab

    Lab()  # one thread: a fork would not have the others
    return module


def carry_out(run: Any, job: dict[str, Any]) -> int:
    """One command, in the fork: its exit code."""
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.argv = [str(RUN), *job["arguments"]]
    try:
        return run.main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    return 1


def main() -> None:
    run = load()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        with TemporaryFile() as output, TemporaryFile() as errors:
            child = os.fork()
            if not child:
                os.dup2(output.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                code = carry_out(run, json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            errors.seek(0)
            said = {"output": output.read().decode(), "errors": errors.read().decode()}
        print(json.dumps({"code": code, **said}), file=answers, flush=True)


if __name__ == "__main__":
    main()
