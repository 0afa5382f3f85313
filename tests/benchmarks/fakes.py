"""Contestants in this process, whose clocks are numbers."""

from experiments.benchmarks.worker import Failed, NotInstalled, Unavailable

DEVICE = "1 x CPU (2 cores, Fast(R) One)"


class Fake:
    """A worker whose calls take a number of seconds."""

    def __init__(self, seconds, parameters=10, platform="cpu", error=None, error_in="build"):
        self.seconds, self.parameters, self.platform = seconds, parameters, platform
        self.error, self.error_in, self.failed = error, error_in, False
        self.closed = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.closed = True

    def call(self, method, /, **arguments):
        if self.error is not None and method == self.error_in:
            self.failed = isinstance(self.error, Failed)
            raise self.error
        return getattr(self, method)(**arguments)

    def describe(self):
        return {"platform": self.platform, "versions": {"fake": "1.0"}}

    def provenance(self):
        return {
            "device": DEVICE,
            "versions": {"jax": "0"},
            "commit": "0123456789abcdef",
            "date": "2026-01-01",
        }

    def build(self, key, method, arguments):
        return {"parameters": self.parameters, "macs": 10**9}

    def block(self, calls, key):
        return calls * self.seconds

    def memory(self, workload):
        size = int(self.seconds * 2**20)
        return {
            "parameters": self.parameters,
            "macs": 1,
            "first": 2 * size,
            "peak": size,
            "seconds": 0.1,
        }


FAKES = {
    "ours": lambda: Fake(0.5),
    "torch": lambda: Fake(1.0),
    "torch-channels-last": lambda: Fake(1.0, parameters=11),
    "torch-compile": lambda: Fake(1.0, error=Unavailable("found no g++")),
    "torch-compile-channels-last": lambda: Fake(1.0, platform="gpu"),
    "keras": lambda: Fake(1.0, error=NotInstalled("keras"), error_in="describe"),
    "linen": lambda: Fake(1.0, error=Failed("exit code 1"), error_in="block"),
}


def start(name, *arguments, **options):
    return FAKES[name]()
