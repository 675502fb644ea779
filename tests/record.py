"""Whether two commits decide and draw alike: a pytest plugin that writes down what every host test made.

    RECORD=/tmp/before.json python dev.py test tests/host        on one commit, and RECORD=/tmp/after.json on the other
    python tests/record.py /tmp/before.json /tmp/after.json      compares them, test by test, to the bit

Written down: every trace that a run publishes (all but its clock and its prompt) and a digest of every latent that
`comfy.sample` gives back. Tests that only one of the two has are counted, and everything else has to be equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

FOUND: dict[str, list[Any]] = {}
CLOCK = ("seconds", "speedup", "run")


def bare(trace: dict[str, Any]) -> dict[str, Any]:
    """A trace without what differs from run to run."""
    kept = {name: value for name, value in trace.items() if name not in CLOCK}
    kept["evaluations"] = [{n: v for n, v in e.items() if n not in CLOCK} for e in trace["evaluations"]]
    return kept


def differences(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> list[str]:
    """The tests that both have and that made something else."""
    return [name for name, made in before.items() if name in after and after[name] != made]


try:
    import pytest
except ImportError:  # comparing needs no pytest
    pass
else:

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(item: Any) -> Generator[None, Any, Any]:
        watched = item.funcargs.get("host")
        if watched is None or not hasattr(watched, "host"):
            return (yield)
        made = FOUND.setdefault(item.nodeid.split("tests/")[-1], [])
        book, module = watched.host.RUNS, watched.comfy.sample
        publish, sample = type(book).publish, module.sample

        def published(self: Any, trace: Any) -> None:
            publish(self, trace)
            made.append(json.loads(json.dumps(bare(trace))))

        def sampled(*args: Any, **kwargs: Any) -> Any:
            out = sample(*args, **kwargs)
            whole = out.unbind() if getattr(out, "is_nested", False) else [out]
            made.append(hashlib.sha256(b"".join(t.float().numpy().tobytes() for t in whole)).hexdigest())
            return out

        type(book).publish, module.sample = published, sampled
        try:
            return (yield)
        finally:
            type(book).publish, module.sample = publish, sample

    def pytest_sessionfinish(session: Any) -> None:
        target = os.environ.get("RECORD")
        if target and FOUND:
            Path(target).write_text(json.dumps(FOUND), encoding="utf-8")


if __name__ == "__main__":
    before, after = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])
    both = before.keys() & after.keys()
    changed = differences(before, after)
    only = len(before.keys() - both), len(after.keys() - both)
    print(f"{len(both)} tests compared, {len(changed)} differ; {only[0]} only before, {only[1]} only after")
    print("\n".join(changed))
    sys.exit(bool(changed))
