"""Faults of ours inside the forward, at each site that has hooks there: the call is computed, the rule goes on at its
next place in the same evaluation or the run goes on uncached, and nobody gets an exception.

What was left out of a call before the fault must not show: the picture is that of a run which skips as before and
computes from the faulty evaluation on, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("untrained")

STEPS, SMALL = 7, {"steps": 7, "size": (8, 8)}
SKIPPED, FAULTY = (2, 4, 5), 4
"""Steps that are skipped, and the evaluation in which something goes wrong."""
SITES = ["trunk", "blocks", "attention", "mlp"]


def method(host: Any, site: str, steps: tuple[int, ...], *further: Any, beside: tuple[int, ...] = ()) -> Any:
    """Skips these steps at one site; `beside`: attention and MLP, the other one of the two skips these."""
    types = host.types
    rules, other = [], {"attention": "mlp", "mlp": "attention"}.get(site, "")
    for kind, skipped in ((site, steps), *(((other, beside),) if beside else ())):
        gate = host.schedules.Listed(lambda schedule, skipped=frozenset(skipped): skipped)
        feature = {"trunk": "residual", "blocks": "affine"}.get(kind, "absolute")
        places = (types.Place(kind), *further)
        rules.append(types.Rule(places, types.Signal(), gate, host.predictors.Hold(), feature))
    return host.host.attach(host.model, types.Method(f"at {site}", tuple(rules)), None)


class Fault:
    """Raises in the n-th call of a function of ours in one evaluation."""

    def __init__(self, host: Any, monkeypatch: pytest.MonkeyPatch, evaluation: int) -> None:
        self.patch, self.evaluation, self.begun, self.calls = monkeypatch, evaluation, -1, 0
        begin = host.core.Session.begin

        def counted(session: Any, sigma: torch.Tensor) -> None:
            self.begun, self.calls = self.begun + 1, 0
            begin(session, sigma)

        monkeypatch.setattr(host.core.Session, "begin", counted)

    def put(self, owner: Any, name: str, call: int = 0) -> None:
        healthy: Callable[..., Any] = getattr(owner, name)

        def fail(*args: Any, **kwargs: Any) -> Any:
            self.calls += self.begun == self.evaluation
            if self.begun == self.evaluation and self.calls == call + 1:
                raise ValueError("injected")
            return healthy(*args, **kwargs)

        self.patch.setattr(owner, name, fail)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = (r for r in caplog.records if r.name == "SpectralCache" and r.levelname == "WARNING")
    return [record.getMessage() for record in ours]


def fault_at(host: Any, site: str, where: str) -> tuple[Any, str]:
    """Who has the function."""
    if where in ("enter", "replaced"):
        return type(host.core.architecture_of(host.diffusion_model)), where
    return host.track, where.removeprefix("late ")


FAULTS = [
    *((site, "predict") for site in SITES),
    *((site, "late predict") for site in ("blocks", "attention", "mlp")),
    *((site, "enter") for site in SITES),
    *((site, "leave_out") for site in SITES),
    ("trunk", "replaced"),
    ("blocks", "replaced"),
    ("attention", "holds"),
]


@pytest.mark.claim("Complaints about caching packs", "a fault in a hook at any site: that evaluation is computed")
@pytest.mark.parametrize(("site", "where"), FAULTS)
def test_a_fault_in_a_hook_computes_the_evaluation(
    host: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, site: str, where: str
) -> None:
    expected = host.sample(method(host, site, SKIPPED[:1]), **SMALL)
    owner, name = fault_at(host, site, where)
    Fault(host, monkeypatch, FAULTY).put(owner, name, 3 if where.startswith("late") else 0)
    caplog.clear()
    out = host.sample(method(host, site, SKIPPED), **SMALL)
    trace = host.trace()
    assert torch.equal(out, expected)
    assert trace["state"] == "stood down" and len(warnings(caplog)) == 1 and "injected" in trace["notes"][-1]
    found = [(e["action"], e["work"]) for e in trace["evaluations"]]
    assert len(found) == STEPS and found[FAULTY:] == [("computed", 1.0)] * (STEPS - FAULTY)
    assert trace["evaluations"][FAULTY]["reason"] == "fault" and found[2][0] != "computed"
    assert all("forward" not in module.__dict__ for module in host.diffusion_model.modules())


@pytest.mark.parametrize("site", SITES)
def test_a_fault_while_storing_costs_the_cache_alone(
    host: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, site: str
) -> None:
    plain = host.sample(host.model, **SMALL)
    Fault(host, monkeypatch, 1).put(host.track, "store")
    caplog.clear()
    assert torch.equal(host.sample(method(host, site, SKIPPED), **SMALL), plain)
    assert len(warnings(caplog)) == 1 and host.trace()["evaluations"][1]["reason"] == "fault"


@pytest.mark.parametrize("site", SITES)
def test_a_rule_goes_on_at_its_next_place_in_the_same_evaluation(
    host: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, site: str
) -> None:
    """Whole model calls: the faulty evaluation is their first, so that the next one can be skipped."""
    Fault(host, monkeypatch, FAULTY).put(host.track, "predict", 1 if site in ("blocks", "mlp", "attention") else 0)
    caplog.clear()
    out = host.sample(method(host, site, SKIPPED, host.types.MODEL), **SMALL)
    trace = host.trace()
    assert torch.isfinite(out).all() and (trace["state"], trace["site"]) == ("done", "model"), trace["notes"]
    assert [e["action"] for e in trace["evaluations"]][FAULTY:] == ["computed", "skipped", "computed"]
    assert trace["evaluations"][FAULTY]["reason"] == "fault" and len(warnings(caplog)) == 1


@pytest.mark.parametrize("site", ["attention", "mlp"])
@pytest.mark.parametrize("call", [0, 2])
def test_a_fault_beside_the_other_modules_skip(
    host: Any, monkeypatch: pytest.MonkeyPatch, site: str, call: int
) -> None:
    """Both rules skip in the faulty evaluation; what either had left out by then is run again."""
    expected = host.sample(method(host, site, SKIPPED[:1], beside=(3,)), **SMALL)
    fault = Fault(host, monkeypatch, FAULTY)
    healthy = host.track.predict

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.rule.places[0].kind == site and fault.begun == FAULTY:
            fault.calls += 1
            if fault.calls > call:
                raise ValueError("injected")
        return healthy(self, *args, **kwargs)

    monkeypatch.setattr(host.track, "predict", fail)
    out = host.sample(method(host, site, SKIPPED, beside=(3, 4)), **SMALL)
    trace = host.trace()
    assert torch.equal(out, expected) == (call > 0)
    assert trace["state"] == "stood down" and torch.isfinite(out).all()
    work = [e["work"] for e in trace["evaluations"]][FAULTY:]
    assert work == [1.0] * (STEPS - FAULTY) if call else (0 < work[0] < 1 and work[1:] == [1.0] * (STEPS - FAULTY - 1))
