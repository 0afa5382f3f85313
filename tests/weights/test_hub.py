"""The real client of the hub against a stand-in for the hub on this machine."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from segzoo import SegzooError, weights
from segzoo.weights import hub
from segzoo.weights.hub import HubId

CLIENT = Path(__file__).parents[1] / "programs" / "hub_client.py"
OLD, NEW = "a" * 40, "b" * 40


class Hub:
    """What the stand-in serves: one repository with two commits.

    Attributes:
        files: content by commit and name.
        main: the commit of the branch "main".
        sabotage: None, "damage" (a byte is changed on the way) or "cut" (half of it arrives).
    """

    def __init__(self):
        self.files = {
            OLD: {"model.safetensors": b"old weights" * 1000, "config.json": b"{}"},
            NEW: {"model.safetensors": b"new weights" * 1000, "other.bin": b"other"},
        }
        self.main = OLD
        self.sabotage = None

    def find(self, repository, revision):
        if repository != "zoo/net":
            return None, "RepoNotFound"
        commit = {"main": self.main}.get(revision, revision)
        return (commit, None) if commit in self.files else (None, "RevisionNotFound")


def handler(served):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status, headers=None, body=b""):
            self.send_response(status)
            sent = body
            if served.sabotage == "cut" and self.path.startswith("/cdn/"):
                sent = body[: len(body) // 2]
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(sent)

        def do_GET(self):
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[0] == "cdn":
                content = served.files[parts[1]][parts[2]]
                if served.sabotage == "damage":
                    content = b"X" + content[1:]
                return self.answer(200, {}, content)
            if parts[0] == "api":
                commit, error = served.find("/".join(parts[2:4]), parts[5])
                if error:
                    return self.answer(404, {"X-Error-Code": error})
                listing = [
                    {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                    for name, content in served.files[commit].items()
                ]
                siblings = [{"rfilename": entry["path"]} for entry in listing]
                whole = {"id": "zoo/net", "sha": commit, "siblings": siblings}
                body = json.dumps(listing if parts[4] == "tree" else whole).encode()
                return self.answer(200, {"Content-Type": "application/json"}, body)
            commit, error = served.find("/".join(parts[:2]), parts[3])
            name = "/".join(parts[4:])
            if error is None and name not in served.files[commit]:
                error = "EntryNotFound"
            if error:
                commit = {"X-Repo-Commit": commit} if commit else {}
                return self.answer(404, {"X-Error-Code": error, **commit})
            content = served.files[commit][name]
            headers = {"X-Repo-Commit": commit}
            if name.endswith(".json"):  # small files lie in git itself
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                return self.answer(200, {**headers, "ETag": f'"{blob}"'}, content)
            port = self.server.server_address[1]
            headers |= {
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"http://localhost:{port}/cdn/{commit}/{name}",
            }
            return self.answer(302, headers)

        do_HEAD = do_GET

    return Handler


class Client:
    """A process with the client in it."""

    def __init__(self, endpoint, cache, **environment):
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # A busy machine is no broken hub.
            "HF_HUB_ETAG_TIMEOUT": "60",
            "HF_HUB_DOWNLOAD_TIMEOUT": "60",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
            **environment,
        }
        self._process = subprocess.Popen(
            [sys.executable, str(CLIENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def fetch(self, text):
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The stand-in, where it is, the cache, and a client on line and one off line."""
    served = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(served))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    cache = tmp_path_factory.mktemp("hub")
    clients = Client(endpoint, cache), Client(endpoint, cache, HF_HUB_OFFLINE="1")

    def stop():
        if thread.is_alive():
            server.shutdown()
            thread.join()
            server.server_close()

    yield served, cache, *clients, stop
    for client in clients:
        client.close()
    stop()


@pytest.fixture
def fresh(place):
    """`place` with nothing in the cache, and the hub as it was."""
    import shutil

    served, cache, online, offline, _ = place
    served.__init__()
    shutil.rmtree(cache / "hub", ignore_errors=True)
    return served, cache, online, offline


def contents(cache):
    return [path for path in (cache / "hub").rglob("*") if path.is_file() and "blobs" in path.parts]


def test_a_file_is_downloaded_and_pinned(fresh):
    served, _, online, _ = fresh
    got = online.fetch("hf:zoo/net")
    assert got["id"] == f"hf:zoo/net@{OLD}/model.safetensors"
    assert Path(got["path"]).read_bytes() == served.files[OLD]["model.safetensors"]
    # A pinned id keeps its meaning when the branch moves on; a floating one follows.
    served.main = NEW
    assert online.fetch(got["id"]) == got
    assert online.fetch("hf-hub:zoo/net")["id"] == f"hf:zoo/net@{NEW}/model.safetensors"
    assert online.fetch(f"hf:zoo/net@{NEW}/other.bin")["path"].endswith(f"{NEW}/other.bin")


def test_what_is_in_the_cache_needs_no_hub(fresh):
    _, _, online, offline = fresh
    missing = offline.fetch("hf:zoo/net")
    assert "is not in the cache, and the hub cannot be reached" in missing["error"]
    got = online.fetch("hf:zoo/net")
    assert offline.fetch("hf:zoo/net") == got
    assert offline.fetch(got["id"]) == got


def test_damage_on_the_way_is_found_and_mended(fresh):
    served, cache, online, _ = fresh
    served.sabotage = "damage"
    assert "its checksum is not the hub's" in online.fetch("hf:zoo/net")["error"]
    assert contents(cache) == []
    served.sabotage = None
    assert "path" in online.fetch("hf:zoo/net")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damage_on_the_disk_is_found(fresh, name):
    _, _, online, offline = fresh
    path = Path(online.fetch(f"hf:zoo/net/{name}")["path"])
    path.write_bytes(b"X" + path.read_bytes()[1:])
    assert "its checksum is not the hub's" in offline.fetch(f"hf:zoo/net/{name}")["error"]
    assert not path.exists()
    assert "path" in online.fetch(f"hf:zoo/net/{name}")


def test_an_interrupted_download_leaves_nothing(fresh):
    served, cache, online, _ = fresh
    served.sabotage = "cut"
    assert "cannot be downloaded" in online.fetch("hf:zoo/net")["error"]
    assert contents(cache) == []
    served.sabotage = None
    assert "path" in online.fetch("hf:zoo/net")


def test_the_checksum_asked_for_is_checked(fresh):
    served, _, online, _ = fresh
    right = hashlib.sha256(served.files[OLD]["model.safetensors"]).hexdigest()
    assert online.fetch(f"hf:zoo/net#sha256={right}")["id"].endswith(f"#sha256={right}")
    wrong = online.fetch(f"hf:zoo/net#sha256={'0' * 64}")
    assert f"has another sha256 than the one asked for: {right}" in wrong["error"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:zoo/nothing", "no repository 'zoo/nothing'"),
        ("hf:zoo/net@v9", "hf:zoo/net has no revision 'v9'"),
        ("hf:zoo/net/net.pth", "has no file 'net.pth'. It has model.safetensors."),
        ("hf:zoo/-net", "no name of a repository"),
        ("hf:zoo", "'hf:zoo' is no hub id; expected hf:owner/name"),
    ],
)
def test_what_does_not_exist_is_named(fresh, name, message):
    error = fresh[2].fetch(name)["error"]
    assert message in error
    assert "\n" not in error


def test_a_cached_file_survives_the_hub(place, fresh):
    """Runs last: the stand-in is not started again."""
    *_, online, _ = fresh
    got = online.fetch("hf:zoo/net")
    place[-1]()
    assert online.fetch("hf:zoo/net") == got


# --- without a hub -------------------------------------------------------------------------------


def test_ids_are_read_and_written():
    assert HubId.parse("hf:a/b") == HubId("a/b", "main", "model.safetensors")
    full = "hf:a/b-1.c@refs%2Fpr%2F1/x/y.pth#sha256=" + "0" * 64
    assert str(HubId.parse(full)) == full
    assert HubId.parse(full).revision == "refs/pr/1"
    for bad in ("hf:a", "hf:a/b@", "hf:a/b#sha256=12", "hf:a/b@x@y", "hg:a/b"):
        with pytest.raises(SegzooError, match="is no hub id"):
            HubId.parse(bad)


def test_a_pin_stands_for_what_it_pinned():
    assert weights.is_pin_of(f"hf:a/b@{OLD}/model.safetensors", "hf:a/b")
    assert weights.is_pin_of(f"resnet50.tv_in1k@{OLD}", "resnet50.tv_in1k")
    assert not weights.is_pin_of(f"resnet50.tv_in1k@{OLD}", "resnet50.a1_in1k")
    assert not weights.is_pin_of(f"hf:a/b@{OLD}", f"hf:a/b@{NEW}")
    assert not weights.is_pin_of(f"hf:a/b@{OLD}", "hf:a/b/other.bin")
    assert not weights.is_pin_of("runs/one", "runs/one")
    assert weights.pin("runs/one") == "runs/one"


def test_the_extra_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SegzooError, match=r"pip install 'segzoo\[hub\]'"):
        hub.fetch(HubId("a/b"))


def test_known_weights_are_of_registered_models():
    from segzoo import registry
    from segzoo.weights.known import find

    names = weights.pretrained()
    assert len(set(names)) == len(names)
    for name in names:
        row, wanted = find(f"{name}@{OLD}")
        assert set(row.model_args) <= set(registry.entry(row.model).overrides)
        assert (wanted.repository, wanted.revision) == (f"timm/{name}", OLD)
        assert len(row.mean) == len(row.std) == 3
    assert "resnet50.tv_in1k" in weights.pretrained("resnet50")
    assert all("resnet50" in name for name in weights.pretrained("resnet50"))
    with pytest.raises(SegzooError, match="unknown model 'resnet51'"):
        weights.pretrained("resnet51")
    with pytest.raises(SegzooError, match=r"Did you mean 'resnet50.tv_in1k'\?"):
        weights.read("resnet50.tv_in1")
