import pytest

from experiments.benchmarks.worker import Failed, NotInstalled, Unavailable, Worker

TOLD = "tests.programs.contestant:Told"


def test_answers_come_over_the_pipe_whatever_libraries_print():
    with Worker(TOLD, {"SEGZOO_TEST": "here", "HOME": None}, timeout=60) as worker:
        assert worker.call("double", number=4) == 8
        assert worker.call("double", number="ab") == "abab"
        assert worker.call("environment", name="SEGZOO_TEST") == "here"
        assert worker.call("environment", name="HOME") is None
        with pytest.raises(NotInstalled, match=r"^no_such_package$"):
            worker.call("needs", package="no_such_package")
        with pytest.raises(Unavailable, match=r"^no C\+\+ compiler; found no g\+\+$"):
            worker.call("refuse")
        assert not worker.failed
        with pytest.raises(Failed, match=r"^RuntimeError: out of memory$"):
            worker.call("fail")
        assert worker.failed
        assert worker.call("double", number=1) == 2


def test_the_last_words_of_a_process_that_dies_are_told():
    with Worker(TOLD, timeout=60) as worker:
        with pytest.raises(Failed, match=r"^exit code 3: the last words$"):
            worker.call("die")
        with pytest.raises(Failed, match="exit code 3"):
            worker.call("double", number=1)


def test_an_answer_that_takes_too_long_is_a_failure():
    with Worker(TOLD, timeout=60) as worker:
        worker.call("double", number=1)  # started
        worker._timeout = 0.2
        with pytest.raises(Failed, match=r"no answer within 0.2 s"):
            worker.call("sleep", seconds=30)


def test_a_missing_package_of_the_contestant_itself():
    with Worker("no_such_package.module:Class", timeout=60) as worker, pytest.raises(NotInstalled):
        worker.call("double", number=1)
