"""A contestant in a process of its own, and the pipe to it.

Thread pools and memory of two libraries do not disturb each other: while one works the other waits
for a line on its standard input. A request is one line of JSON, `{"method": ..., "arguments":
{...}}`, and so is its answer. Whatever else a library prints goes into a file, whose end is told
when the process dies.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from segzoo.allocator import malloc_keeps_freed_memory
from segzoo.errors import SegzooError

ROOT = Path(__file__).parents[2]


class NoResult(Exception):
    """A contestant has nothing to show; the text says why in one line, `state` in a word."""

    state: ClassVar[str]

    @property
    def entry(self) -> dict[str, str]:
        """What a record says in the result's place."""
        return {"state": self.state, "why": str(self)}


class NotInstalled(NoResult):
    """A package is not there; the text is its name."""

    state = "not installed"


class Unavailable(NoResult):
    """The contestant cannot take part here."""

    state = "unavailable"


class Failed(NoResult):
    """The contestant broke down."""

    state = "failed"


class Worker:
    """The near end of the pipe.

    Args:
        target: `module:Class` of the contestant, made without arguments at the first request.
        environment: changes to this process's environment; None takes a variable away.
        timeout: seconds an answer may take.

    Attributes:
        failed: whether a call raised `Failed`.
    """

    def __init__(
        self, target: str, environment: Mapping[str, str | None] | None = None, timeout: float = 900
    ):
        self.failed = False
        self._timeout = timeout
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
        surroundings = {**os.environ, **(environment or {})}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmarks.worker", target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd=ROOT,
            env={name: value for name, value in surroundings.items() if value is not None},
        )
        self._buffer = b""

    def call(self, method: str, /, **arguments: Any) -> Any:
        """Calls a method of the contestant and returns its value.

        Raises:
            NotInstalled: when a package is missing.
            Unavailable: when the contestant says that it cannot do it.
            Failed: when it raises, dies, or takes too long; the process has ended then.
        """
        try:
            answer = self._ask(json.dumps({"method": method, "arguments": arguments}))
        except Failed:
            self.failed = True
            raise
        if "missing" in answer:
            raise NotInstalled(answer["missing"])
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        if "error" in answer:
            self.failed = True
            raise Failed(answer["error"])
        return answer["value"]

    def close(self, *, kill: bool = False) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # the far end takes it as the end
        try:
            if kill:
                raise subprocess.TimeoutExpired([], 0)
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(kill=kind is not None)

    def _ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._line())
        except (BrokenPipeError, EOFError):
            self._process.wait()
            raise Failed(self._how_it_ended()) from None
        except TimeoutError:
            self._process.kill()
            raise Failed(f"no answer within {self._timeout:g} s") from None
        return answer

    def _line(self) -> bytes:
        """Reads to the end of a line, or raises TimeoutError or EOFError."""
        assert self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + self._timeout
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            more = os.read(pipe, 65536)
            if not more:
                raise EOFError
            self._buffer += more
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        how = f"its process was ended by signal {-code}" if code < 0 else f"exit code {code}"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return f"{how}: {lines[-1].strip()}" if lines else how


def _answer(contestant: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": getattr(contestant(), request["method"])(**request["arguments"])}
    except ModuleNotFoundError as error:
        return {"missing": (error.name or str(error)).partition(".")[0]}
    except SegzooError as error:
        return {"unavailable": str(error)}
    except Exception as error:  # whatever a library raises is an answer too
        reason = (str(error).strip() or "no reason given").split("\n", 1)[0]
        return {"error": f"{type(error).__name__}: {reason}"}


def _main(target: str) -> None:
    malloc_keeps_freed_memory()  # as our training does; it helps everyone
    # Answers have the pipe to themselves: what libraries print goes where errors go.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made: list[Any] = []

    def contestant() -> Any:
        if not made:
            module, _, name = target.partition(":")
            made.append(getattr(importlib.import_module(module), name)())
        return made[0]

    for line in sys.stdin:
        answers.write(json.dumps(_answer(contestant, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    _main(sys.argv[1])
