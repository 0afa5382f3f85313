import pytest

from experiments.benchmarks.alternation import Pace
from experiments.benchmarks.contest import ceiling, contest
from experiments.benchmarks.worker import Failed

from .fakes import FAKES, Fake, start

BUILDS = {"step": ("train_step", {"workload": {}})}
PACE = Pace(rounds=3, seconds=1.0)


def run(peers, begin=start, builds=BUILDS):
    said = []
    return contest(builds, peers, begin, PACE, said.append), said


def test_every_peer_is_measured_or_says_why_not():
    found, said = run([name for name in FAKES if name != "ours"])
    step = found["step"]
    assert step["parameters"] == 10
    assert step["ours"]["seconds"] == pytest.approx(0.5)
    assert step["ours"]["rates"] == pytest.approx([2.0] * len(step["ours"]["rates"]))
    peers = step["peers"]
    measured = peers["torch"]
    assert measured["state"] == "measured"
    assert [measured[n] for n in ("ratio", "lowest", "highest")] == pytest.approx([2.0] * 3)
    assert measured["versions"] == {"fake": "1.0"}
    others = {name: (entry["state"], entry["why"]) for name, entry in list(peers.items())[1:]}
    assert others == {
        "torch-channels-last": (
            "failed",
            "torch-channels-last has 11 parameters and ours 10; expected the same network",
        ),
        "torch-compile": ("unavailable", "found no g++"),
        "torch-compile-channels-last": ("unavailable", "it sees a gpu only"),
        "keras": ("not installed", "keras"),
        "linen": ("failed", "exit code 1"),
    }
    assert len(said) == len(peers)
    assert "step torch: ours 2.00 times as fast (2.00..2.00)" in said[0]


def test_ours_is_timed_without_any_peer_too():
    for peers in ([], ["keras"]):
        found, _ = run(peers)
        assert found["step"]["ours"]["rates"] == pytest.approx([2.0] * 3)


def test_what_fails_in_ours_is_no_failure_of_the_peer():
    ours = Fake(0.5)

    class Dying(Fake):
        def block(self, calls, key):
            ours.error, ours.error_in = Failed("exit code -9"), "block"
            return super().block(calls, key)

    with pytest.raises(Failed, match="exit code -9"):
        run(["torch"], lambda name: ours if name == "ours" else Dying(1.0))
    assert ours.closed


def test_a_peer_that_breaks_down_keeps_what_it_did_before():
    class Half(Fake):
        def build(self, key, method, arguments):
            if key == "second":
                raise Failed("out of memory")
            return super().build(key, method, arguments)

    builds = {"first": ("inference", {}), "second": ("inference", {})}
    found, _ = run(["torch"], lambda name: Fake(0.5) if name == "ours" else Half(1.0), builds)
    assert found["first"]["peers"]["torch"]["state"] == "measured"
    assert found["second"]["peers"]["torch"] == {"state": "failed", "why": "out of memory"}


def test_the_ceiling_is_that_of_whoever_can_multiply():
    reached = ceiling(("ours", "torch-compile"), "cpu", "float32", start)
    assert reached == {"ours": pytest.approx(2 * 2048**3 / 0.5)}
