import resource
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from segzoo import SegzooError
from segzoo.weights import torch_file as reader

FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
BASE = np.arange(24, dtype=np.float32)


def refused(path, message):
    with pytest.raises(SegzooError, match=message) as caught:
        reader.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@FORMATS
@pytest.mark.parametrize("big", [False, True], ids=["little", "big"])
@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool"]
)
def test_numbers_of_every_type(torch_file, legacy, big, dtype):
    array = BASE.reshape(2, 3, 4).astype(jnp.dtype(dtype))
    path = torch_file({"a": torch_file.Tensor.of(array)}, legacy=legacy, big=big)
    tensors, notes = reader.read(path)
    assert tensors["a"].dtype == array.dtype
    np.testing.assert_array_equal(tensors["a"], array)
    assert notes == ()


@FORMATS
def test_views_of_a_shared_storage(torch_file, legacy):
    make = torch_file.Tensor
    content = {
        "whole": make(BASE, (2, 3, 4), (12, 4, 1), key="0"),
        "transposed": make(BASE, (4, 3, 2), (1, 4, 12), key="0"),
        "row": make(BASE, (4,), (1,), offset=8, key="0"),
        "last": make(BASE, (), (), offset=23, key="0"),
        "repeated": make(BASE, (5, 3), (0, 1), key="0"),
        "empty": make(BASE, (0, 3), (3, 1), key="0"),
        "parameter": make(BASE, (24,), (1,), key="0", parameter=True),
    }
    tensors, _ = reader.read(torch_file(content, legacy=legacy))
    assert list(tensors) == list(content)
    cube = BASE.reshape(2, 3, 4)
    np.testing.assert_array_equal(tensors["whole"], cube)
    np.testing.assert_array_equal(tensors["transposed"], cube.T)
    np.testing.assert_array_equal(tensors["row"], BASE[8:12])
    assert tensors["last"] == 23
    np.testing.assert_array_equal(tensors["repeated"], np.tile(BASE[:3], (5, 1)))
    assert tensors["empty"].shape == (0, 3)
    np.testing.assert_array_equal(tensors["parameter"], BASE)


def test_the_older_formats_views_of_storages(torch_file):
    make = torch_file.Tensor
    content = {"a": make(BASE, (3,), (1,), offset=1, key="0", view=(10, 5))}
    tensors, _ = reader.read(torch_file(content, legacy=True))
    np.testing.assert_array_equal(tensors["a"], [11, 12, 13])
    content = {"a": make(BASE, (5,), (1,), offset=1, key="0", view=(10, 5))}
    refused(torch_file(content, legacy=True), "a reaches past the end of its storage")


@FORMATS
def test_a_state_dict_inside_a_checkpoint_is_found(torch_file, state_dict, legacy):
    call, name = torch_file.Call, torch_file.Global
    weights = state_dict({"a.weight": BASE, "a.bias": BASE[:3]})
    checkpoint = {
        "epoch": 3,
        "lr": 0.1,
        "args": call(name("argparse", "Namespace"), ()),
        "optimizer": {"state": {0: {"momentum": torch_file.Tensor.of(BASE)}}},
        "ema": state_dict({"a.weight": BASE}),
        "state_dict": call(
            name("collections", "OrderedDict"), ([(k, v) for k, v in weights.items()],)
        ),
        "best": None,
        "done": True,
        "dtype": name("torch", "float16"),
        "size": call(name("torch", "Size"), ((1, 2),)),
    }
    path = torch_file(checkpoint, legacy=legacy)
    tensors, notes = reader.read(path)
    assert list(tensors) == ["a.weight", "a.bias"]
    assert notes == (f"the weights of {path} are in state_dict.",)
    _, notes = reader.read(torch_file({"model": {"state_dict": weights}}, legacy=legacy))
    assert notes == (f"the weights of {path} are in model.state_dict.",)
    tensors, notes = reader.read(torch_file({"generator": weights, "step": 1}, legacy=legacy))
    assert list(tensors) == ["a.weight", "a.bias"]


@FORMATS
@pytest.mark.parametrize(
    ("home", "name", "shown"),
    [
        ("os", "system", "os.system"),
        ("posix", "system", "posix.system"),
        ("builtins", "eval", "builtins.eval"),
        ("__builtin__", "exec", "builtins.exec"),
        ("builtins", "getattr", "builtins.getattr"),
        ("torch", "load", "torch.load"),
        ("torch.storage", "_load_from_bytes", "torch.storage._load_from_bytes"),
        ("torchvision.models.resnet", "ResNet", "torchvision.models.resnet.ResNet"),
    ],
)
def test_whatever_would_run_code_is_refused(torch_file, tmp_path, legacy, home, name, shown):
    marker = tmp_path / "ran"
    command = f"touch {marker}" if name == "system" else f"open({str(marker)!r}, 'w')"
    evil = torch_file.Call(torch_file.Global(home, name), (command,))
    for content in (evil, {"a": torch_file.Tensor.of(BASE), "b": [evil]}):
        path = torch_file(content, legacy=legacy)
        refused(path, rf"holds {shown}: to rebuild it would run code")
    assert not marker.exists()


@FORMATS
def test_other_ways_to_run_code_are_refused(torch_file, legacy):
    raw, name = torch_file.Raw, torch_file.Global
    inst = raw(b"(X\x02\x00\x00\x00idios\nsystem\n")
    stack_global = raw(b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93X\x02\x00\x00\x00id\x85R")
    extension = raw(b"\x82\x01")
    refused(torch_file(inst, legacy=legacy), "uses the pickle operation INST")
    refused(torch_file(stack_global, legacy=legacy), r"holds os\.system: .* would run code")
    refused(torch_file(extension, legacy=legacy), "uses the pickle operation EXT1")
    called = torch_file.Call(torch_file.Call(name("torch", "Size"), ((1,),)), (1,))
    refused(torch_file(called, legacy=legacy), "calls something that is not a name")
    module = torch_file.Persistent(("module", name("torch", "Size"), "net.py", "import os"))
    refused(torch_file({"a": module}, legacy=legacy), "refers to something outside it")


@FORMATS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 10**12}, "larger than the file|reaches past the end"),
        ({"count": 25}, "reaches past the end"),
        ({"count": -1}, "a size is no size"),
        ({"offset": 1}, "reaches past the end"),
        ({"offset": -1}, "a size is no size"),
        ({"shape": (25,)}, "reaches past the end"),
        ({"shape": (2,), "strides": (24,)}, "reaches past the end"),
        ({"shape": (2,), "strides": (-1,), "offset": 5}, "a size is no size"),
        ({"shape": (2**40,), "strides": (0,)}, "larger than the file"),
        ({"shape": (2**30, 2**30, 2**30), "strides": (0, 0, 0)}, "larger than the file"),
        ({"shape": (2, 3)}, "an impossible shape"),
        ({"shape": (1,) * 64, "strides": (1,) * 64}, "an impossible shape"),
    ],
)
def test_lies_about_sizes(torch_file, legacy, changes, message):
    fields = {"storage": BASE, "shape": (24,), "strides": (1,), **changes}
    path = torch_file({"a": torch_file.Tensor(**fields)}, legacy=legacy)
    refused(path, message)


@FORMATS
def test_little_files_take_little_memory(torch_file, legacy):
    raw = torch_file.Raw
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    doubled = b"".join([b")", *[b"2\x86" for _ in range(60)]])  # ((..), (..)) sixty deep
    for code, message in (
        (b"Nr\xff\xff\xff\x7f", "holds no state dict"),  # a memo of 2**31 places
        (b"\x8d" + struct.pack("<Q", 2**62), "its pickle is broken"),  # a text of 2**62 bytes
        (b"T" + struct.pack("<i", 2**31 - 1), "its pickle is broken"),
        (b"}" + doubled + b"Ns", "holds no state dict"),  # hashing the key takes 2**60 steps
        (b"}(X\x05\x00\x00\x00model" + doubled + b"u", "holds no state dict"),
        (b"}q\x01X\x05\x00\x00\x00modelh\x01s", "holds no state dict"),  # a dict in itself
        (
            b"c" + b"torch._tensor\n_rebuild_from_type_v2\nq\x01" * 1,
            "its pickle is broken|no state",
        ),
    ):
        refused(torch_file(raw(code), legacy=legacy), message)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * 1024  # KiB


def test_compressed_archives_are_refused(torch_file):
    content = {"a": torch_file.Tensor.of(np.zeros(10**6, np.float32))}
    path = torch_file(content, compression=zipfile.ZIP_DEFLATED)
    refused(path, "is compressed, which torch.save never does")


def test_storages_that_overlap_are_not_read_over_and_over(torch_file):
    zeros = np.zeros(2000, np.float32)
    content = {f"t{i}": torch_file.Tensor.of(zeros, key=str(i)) for i in range(50)}
    path = torch_file(content)
    data = bytearray(path.read_bytes())
    # Every entry of the directory is made to lie where the first storage does.
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("net/data/0").header_offset
        start = archive.start_dir
    place = start
    while data[place : place + 4] == b"PK\x01\x02":
        name, extra, comment = struct.unpack_from("<HHH", data, place + 28)
        if data[place + 46 : place + 46 + name].startswith(b"net/data/"):
            struct.pack_into("<I", data, place + 42, first)
        place += 46 + name + extra + comment
    path.write_bytes(data)
    refused(path, "is not a whole file of torch.save")


@FORMATS
def test_damaged_files_are_named(torch_file, state_dict, legacy):
    path = torch_file(state_dict({"a": BASE, "b": BASE + 1}), legacy=legacy)
    whole = path.read_bytes()
    for keep in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        refused(path, "is not a whole file of torch.save")
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=3):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            reader.read(path)
        except SegzooError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right


def test_a_warning_over_what_is_no_pickle_is_not_passed_on(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(b"PK\\\xed\n.")  # a name with an escape that there is not
    refused(path, "is not a whole file of torch.save")


@pytest.mark.parametrize("content", [3, {"a": 3}, [], {"a": {"b": {}}}], ids=str)
def test_a_file_without_tensors(torch_file, content):
    refused(torch_file(content), "holds no state dict")


def test_other_archives(tmp_path):
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")
    refused(path, "a zip archive with 0 entries data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}.")
        archive.writestr("net/constants.pkl", b"\x80\x02).")
    refused(path, "is a TorchScript program, which would run code")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}.")
        archive.writestr("net/byteorder", "little")
    refused(path, "holds no state dict")
