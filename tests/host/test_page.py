"""What the page asks the server for: the plan, the words of three languages, the help pages, the replacements."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACK = "spectralcache"
LANGUAGES = ("en", "zh", "ja")
TRANSLATED = ("zh", "ja")
FOREIGN = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
PLACES = re.compile(r"\{\w+\}")


def get(server: Any, address: str) -> Any:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(server.url + address) as answer:
        return answer.read()


@pytest.fixture(scope="module")
def nodes(server: Any) -> dict[str, Any]:
    """Every node of this pack, as the host tells the page."""
    everything = json.loads(get(server, "/object_info"))
    return {name: about for name, about in everything.items() if about["python_module"] == f"custom_nodes.{PACK}"}


@pytest.fixture(scope="module")
def words(server: Any) -> dict[str, Any]:
    """What the host serves of every pack's translations."""
    return json.loads(get(server, "/i18n"))


def inputs_of(about: dict[str, Any]) -> dict[str, Any]:
    """Every input, with those below a choice ("method.threshold")."""
    found = {}
    for group in ("required", "optional"):
        for name, spec in about["input"].get(group, {}).items():
            found[name] = spec
            for option in spec[1].get("options", []) if len(spec) > 1 else []:
                if isinstance(option, dict):
                    below = inputs_of({"input": option["inputs"]})
                    found |= {f"{name}.{inner}": inner_spec for inner, inner_spec in below.items()}
    return found


def of_a_choice(inputs: dict[str, Any]) -> set[str]:
    """A choice whose options have inputs of their own, and these: several options may mean different things by a name,
    so English is what the node says, and a new option is not translated yet."""
    choices = {name for name, spec in inputs.items() if any(isinstance(o, dict) for o in spec[1].get("options", []))}
    return {name for name in inputs if name.partition(".")[0] in choices}


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, tree


# the plan -------------------------------------------------------------------------------------------------------------


@pytest.mark.claim("Auto", "what the node says before the run is what the run computes")
@pytest.mark.parametrize(
    "settings",
    [
        {"quality": "Balanced"},
        {"quality": "Draft", "keep_first": 4},
        {"quality": "Custom", "speedup": 3.0},
        {"quality": "Custom", "speedup": 1.0},
    ],
)
@pytest.mark.parametrize("steps", [4, 12])
def test_the_plan_is_what_the_run_computes(server: Any, graphs: Any, settings: dict[str, Any], steps: int) -> None:
    query = urllib.parse.urlencode({**graphs.defaults(graphs.AUTO), **settings, "steps": steps})
    planned = json.loads(get(server, f"/spectralcache/plan?{query}"))["computed"]
    picture = graphs.Picture("a large fox on blue", steps=steps, width=64, height=64, seed=5)
    outputs = server.run(graphs.cached(picture, {**graphs.defaults(graphs.AUTO), **settings}, graphs.AUTO))["outputs"]
    trace = json.loads(outputs["stats"]["trace"][0])
    assert trace["computed"] == planned


@pytest.mark.parametrize(
    "query",
    ["steps=28&speedup=99", "steps=0&speedup=2", "speedup=2", "steps=x", "steps=28&nonsense=1", "steps=1000000000"],
)
def test_a_plan_that_makes_no_sense_is_refused(server: Any, query: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        get(server, f"/spectralcache/plan?{query}")
    assert refusal.value.code == 400 and json.loads(refusal.value.read())["error"]


# the languages --------------------------------------------------------------------------------------------------------


@pytest.mark.claim(
    "Languages", "names and tooltips of every node in English, Chinese and Japanese, none missing or left over"
)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_is_named(nodes: Any, words: Any, language: str) -> None:
    named = words[language]["nodeDefs"]
    assert {name for name in named if name.startswith("SpectralCache") and "StandIn" not in name} == set(nodes)
    for name, about in nodes.items():
        assert set(named[name]) == {"display_name", "description", "inputs", "outputs"}
        inputs = inputs_of(about)
        loose = of_a_choice(inputs)
        found, stated = set(named[name]["inputs"]), {key.replace(".", "_") for key in inputs}
        assert stated - {key.replace(".", "_") for key in loose} <= found <= stated, name
        assert set(named[name]["outputs"]) == {str(i) for i in range(len(about["output"]))}, name
        for part in (*named[name]["inputs"].values(), *named[name]["outputs"].values()):
            assert set(part) == {"name", "tooltip"} and part["name"] and part["tooltip"]


def test_english_is_what_the_nodes_say(nodes: Any, words: Any) -> None:
    """If this fails, a text of a node has changed: change it in locales/en too, and look at the other two languages."""
    for name, about in nodes.items():
        english = words["en"]["nodeDefs"][name]
        assert (english["display_name"], english["description"]) == (about["display_name"], about["description"])
        inputs = inputs_of(about)
        for key in inputs.keys() - of_a_choice(inputs):
            assert english["inputs"][key.replace(".", "_")]["tooltip"] == inputs[key][1]["tooltip"], (name, key)
        assert [out["tooltip"] for out in english["outputs"].values()] == about["output_tooltips"]


@pytest.mark.parametrize("language", TRANSLATED)
def test_no_english_is_left(words: Any, language: str) -> None:
    ours = {name: text for name, text in words[language]["nodeDefs"].items() if name.startswith("SpectralCache")}
    english = dict(leaves(words["en"]["nodeDefs"]))
    for path, text in leaves(ours):
        assert FOREIGN.search(text), (path, text)
        assert text != english.get(path), path
    for path, text in leaves(words[language][PACK]):
        bare = PLACES.sub("", text).strip(" %σ·/")
        assert FOREIGN.search(text) or not bare, (path, text)


@pytest.mark.parametrize("language", TRANSLATED)
def test_the_words_of_the_page_are_all_there_with_the_same_places(words: Any, language: str) -> None:
    english, translated = (dict(leaves(words[name][PACK])) for name in ("en", language))
    assert set(english) == set(translated)
    for path, text in english.items():
        assert sorted(PLACES.findall(text)) == sorted(PLACES.findall(translated[path])), path


def test_every_word_that_the_page_says_has_a_sentence(words: Any) -> None:
    known = set(words["en"][PACK])
    for script in sorted((ROOT / "web").glob("*.js")):
        said = re.findall(r"\bsay\(\s*\"(\w+)\"", script.read_text("utf-8"))
        assert set(said) <= known, script.name


def test_every_reason_of_the_help_page_has_a_translation(words: Any) -> None:
    page = (ROOT / "web" / "docs" / "SpectralCacheStats.md").read_text("utf-8")
    rows = page.split("| Why | Meaning |")[1].split("\n\n")[0].splitlines()[2:]
    reasons = {row.split("|")[1].strip() for row in rows}
    known = set(words["en"][PACK]["reasons"])
    for row in reasons:
        alone = row in known
        assert alone or all(part.strip() in known for part in row.split(", ")), row


# help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.claim(
    "Languages", "a help page for every node in English, Chinese and Japanese, where the page looks it up"
)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page(server: Any, nodes: Any, words: Any, language: str) -> None:
    for name, about in nodes.items():
        file = f"{name}.md" if language == "en" else f"{name}/{language}.md"
        text = get(server, f"/extensions/{PACK}/docs/{file}").decode()
        title = words[language]["nodeDefs"][name]["display_name"]
        assert text.startswith(f"# {title}\n"), file
        bold = [key for key in about["input"].get("required", {}) | about["input"].get("optional", {})]
        for key in (*bold, *(out for out in about["output_name"] if out != "MODEL")):
            assert f"| **{key}** |" in text, (file, key)
        pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert pictures, f"{file} has no picture"
        for picture in pictures:
            assert get(server, f"/extensions/{PACK}/docs/{picture}"), picture
        if language != "en":
            lines = [line for line in text.splitlines() if len(line) > 40 and not line.startswith(("|", "!"))]
            assert all(FOREIGN.search(line) for line in lines), file


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_answers_the_two_questions_and_recommends(nodes: Any, language: str) -> None:
    asked = {
        "en": ("## Recommended settings", "## Nothing was skipped. Why?", "## The picture changed too much. What now?"),
        "zh": ("## 推荐设置", "## 什么都没跳过，为什么？", "## 画面变化太大，怎么办？"),
        "ja": ("## おすすめの設定", "## 何もスキップされない。なぜ？", "## 画像が変わりすぎた。どうする？"),
    }[language]
    for name in nodes:
        file = ROOT / "web" / "docs" / (f"{name}.md" if language == "en" else f"{name}/{language}.md")
        text = file.read_text("utf-8")
        missing = [heading for heading in asked if heading not in text]
        if language == "en" and name == "SpectralCacheStats":
            missing = [heading for heading in missing if heading != asked[0]]  # nothing to set there
        assert not missing, (file.name, missing)


# moving over ----------------------------------------------------------------------------------------------------------


@pytest.mark.claim(
    "Moving over", "graphs with TeaCache, FBCache, MagCache, CacheDiT, TaylorSeer or Spectrum run with Auto"
)
@pytest.mark.parametrize(
    "old",
    [
        "TeaCache",
        "ApplyFBCacheOnModel",
        "MagCache",
        "CacheDiT_Model_Optimizer",
        "TaylorSeer",
        "TaylorSeerLite",
        "SpectrumApplyFlux",
    ],
)
def test_a_graph_of_another_pack_runs_with_ours(server: Any, graphs: Any, old: str) -> None:
    picture = graphs.Picture("a large fox on blue", steps=10, width=64, height=64, seed=7)
    graph = graphs.cached(picture, graphs.defaults(graphs.AUTO), graphs.AUTO)
    graph["apply"] = {
        **graphs.node(old, model=graph["apply"]["inputs"]["model"], rel_l1_thresh=0.4),
        "_meta": {"title": old},
    }
    entry = server.run(graph)
    trace = json.loads(entry["outputs"]["stats"]["trace"][0])
    assert (trace["method"], trace["params"]["quality"]) == ("SpectralCache Auto", "Balanced")
    assert trace["skipped"] > 0
    offered = json.loads(get(server, "/node_replacements"))[old]
    assert [offer["new_node_id"] for offer in offered] == ["SpectralCacheAutoApply"]
