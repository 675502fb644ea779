"""Random prompts of our nodes through `/prompt`: each is answered with a result or with an error that says what to do.

Inputs come from what the host tells a page about a node (`/object_info`), most of them allowed, some out of range or of
another type. SPECTRALCACHE_PROMPTS=10000 python dev.py test tests/host/test_random_prompts.py tries more.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

COUNT = int(os.environ.get("SPECTRALCACHE_PROMPTS", "40"))
NODES = {
    "SpectralCacheAutoApply": "SpectralCache Auto",
    "SpectralCacheApply": "SpectralCache Apply",
    "SpectralCacheFreqCaApply": "FreqCa Apply",
    "SpectralCacheFEBApply": "FEB-Cache Apply",
    "SpectralCacheMethodApply": "Cache Method",
}
"""Class and the name by which an error calls it."""
SAMPLERS = ["euler", "heun", "dpmpp_2m", "euler_ancestral", "lcm", "uni_pc", "res_multistep", "dpm_2", "ddim"]
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    st.just([]), st.just({}),
)  # fmt: skip
"""As JSON carries it."""


def allowed(kind: Any, about: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the input's own statement allows."""
    choices = kind if isinstance(kind, list) else about.get("options")
    if choices:
        return st.sampled_from(choices)
    if kind == "BOOLEAN":
        return st.booleans()
    if kind == "STRING":
        return st.just(about.get("default", ""))
    low, high = about.get("min", 0), about.get("max", 1)
    if kind == "INT":
        return st.integers(low, high)
    return st.floats(low, high, allow_nan=False)


@st.composite
def values(draw: st.DrawFn, inputs: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Inputs of a node: of two prompts, one is all allowed; in the other each input is something else in one of six."""
    careless, found = draw(st.booleans()), {}
    for name, (kind, *rest) in inputs.items():
        about = rest[0] if rest else {}
        if kind == "COMFY_DYNAMICCOMBO_V3":
            option = draw(st.sampled_from(about["options"]))
            found[prefix + name] = option["key"]
            asked = {**option["inputs"].get("required", {}), **option["inputs"].get("optional", {})}
            found |= draw(values(asked, f"{prefix}{name}."))
        elif kind not in ("MODEL", "SPECTRALCACHE_PROFILE"):
            value = allowed(kind, about)
            if careless and draw(st.integers(0, 5)) == 0:
                value = ANYTHING
            found[prefix + name] = draw(value)
    return found


@pytest.fixture(scope="module")
def known(server: Any) -> dict[str, dict[str, Any]]:
    """Every input of our nodes."""
    told = {name: server.object_info(name)["input"] for name in NODES}
    return {name: {**groups.get("required", {}), **groups.get("optional", {})} for name, groups in told.items()}


@pytest.mark.claim("Complaints about caching packs", "random settings: a result, or an error that says what to do")
def test_every_prompt_is_answered(server: Any, graphs: Any, known: dict[str, dict[str, Any]]) -> None:
    ended = {"a result": 0, "an error": 0}

    @settings(max_examples=COUNT, deadline=None, derandomize=COUNT <= 40, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data=st.data())
    def answered(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(NODES)))
        given_values = data.draw(values(known[name]))
        picture = graphs.Picture(
            "a fox on red", cfg=data.draw(st.sampled_from([1.0, 3.0])), steps=data.draw(st.integers(1, 9)), width=32,
            height=48, seed=data.draw(st.integers(0, 1 << 32)), sampler=data.draw(st.sampled_from(SAMPLERS)),
            denoise=data.draw(st.sampled_from([1.0, 0.5])),
        )  # fmt: skip
        graph = graphs.cached(picture)
        graph["apply"] = graphs.node(name, model=graphs.link("shift"), **given_values)
        try:
            entry = server.run(graph)
        except Exception as error:
            ended["an error"] += 1
            check(str(error), name, given_values)
            return
        ended["a result"] += 1
        trace = json.loads(entry["outputs"]["stats"]["trace"][0])
        assert trace["state"] in ("done", "stood down"), trace["state"]
        assert trace["computed"] + trace["skipped"] + trace["partial"] == len(trace["evaluations"]) > 0

    answered()
    assert min(ended.values()) > COUNT // 8, ended  # else nothing much was tried


def check(said: str, name: str, given_values: dict[str, Any]) -> None:
    """An error must name the node or the host's own check, and an input or value that it was given."""
    said = said if "refused" in said else said.splitlines()[0]  # behind it stands the host's traceback
    for crash in ("Traceback", "KeyError", "TypeError", "AttributeError", "IndexError", "AssertionError", "None of"):
        assert crash not in said, said
    assert "refused" in said or NODES[name] in said, said
    told = [key.rpartition(".")[2] for key in given_values]
    assert any(key in said for key in told) or any(str(value) in said for value in given_values.values()), said
