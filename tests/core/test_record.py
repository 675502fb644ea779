"""The comparison of two commits: what counts as the same."""

from tests.record import bare, differences

TRACE = {"method": "m", "run": {"prompt": "1"}, "speedup": {"wall": 2.0}, "evaluations": [{"step": 0, "seconds": 1.0}]}


def test_the_clock_and_the_prompt_do_not_count() -> None:
    later = {**TRACE, "run": {"prompt": "2"}, "speedup": {"wall": 1.0}, "evaluations": [{"step": 0, "seconds": 9.0}]}
    assert bare(TRACE) == bare(later) == {"method": "m", "evaluations": [{"step": 0}]}
    assert bare({**TRACE, "evaluations": [{"step": 1, "seconds": 1.0}]}) != bare(TRACE)


def test_a_test_that_made_something_else_is_named() -> None:
    before = {"same": ["digest"], "changed": ["digest", 1], "gone": ["digest"]}
    assert differences(before, {"same": ["digest"], "changed": ["digest", 2], "new": [3]}) == ["changed"]
