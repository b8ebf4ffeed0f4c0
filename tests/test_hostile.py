"""Files that would run code, never end or take all memory; processes that are killed or meet in one folder."""
import io
import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from gslrm_mouse.calibration.formats import read_calibration, write_calibration
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.cli import main
from gslrm_mouse.files import MAX_ENTRIES, open_image
from gslrm_mouse.models.facelift import load_torch_file
from gslrm_mouse.models.gslrm import GSLRMConfig
from gslrm_mouse.training.settings import load_settings

ROOT = Path(__file__).parents[1]
HANGS = 600 # seconds after which a process is taken to hang; a loaded machine may need minutes
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def sentence(call, *fragments, exc=ValueError):
    with pytest.raises(exc) as e: call()
    message = str(e.value)
    assert len(message.splitlines()) == 1
    for fragment in fragments: assert fragment in message, message
    return message


# not "fork": the test process has threads, and a copy of it can stop for ever at a lock that one of them held
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["gslrm_mouse.calibration.formats"])


def in_a_process(function, *args):
    "A call in a process of its own, which is ended where it hangs; the seconds of processor time and bytes it took."
    results, sender = FORKING.Pipe(duplex=False)
    process = FORKING.Process(target=measured, args=(sender, function, *args))
    process.start()
    sender.close() # now a process that dies is the end of the pipe
    try:
        assert results.poll(HANGS), f"no answer in {HANGS} s"
        return results.recv()
    finally:
        process.kill()
        process.join()


def measured(sender, function, *args):
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF)
    function(*args)
    after = resource.getrusage(resource.RUSAGE_SELF)
    sender.send((after.ru_utime - before.ru_utime, 1024*(after.ru_maxrss - before.ru_maxrss)))


def die(): os._exit(3)


def test_a_process_that_dies_is_seen():
    with pytest.raises(EOFError): in_a_process(die)


# ---- modules of the working directory
SAY = "open({!r}, 'w').write('code of the working directory ran')"


MODULES = "json", "struct", "numpy", "scipy", "h5py", "io", "sitecustomize"


def plant_modules(folder, monkeypatch):
    "Modules in what becomes the working directory, each of which leaves a mark when it is imported."
    for module in MODULES:
        (folder/f"{module}.py").write_text(SAY.format(str(folder/f"{module}.ran")))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def imported_modules(folder):
    return {path.stem for path in folder.glob("*.ran")}


@pytest.mark.parametrize("suffix", [".mat", ".h5"])
def test_child_of_a_reader_imports_nothing_from_here(tmp_path, monkeypatch, suffix):
    rig = mouse_rig()
    path = write_calibration(rig, tmp_path/f"rig{suffix}")
    plant_modules(tmp_path, monkeypatch)
    assert torch.allclose(read_calibration(path, 1152, 1024).K, rig.K, atol=1e-9)
    assert not imported_modules(tmp_path)


def test_a_child_that_imports_from_here_is_seen(tmp_path, monkeypatch):
    plant_modules(tmp_path, monkeypatch)
    subprocess.run([sys.executable, "-c", "import json"], check=True)
    assert imported_modules(tmp_path) >= {"json", "sitecustomize"}


def test_processes_of_a_study_import_nothing_from_here(tmp_path):
    for module in ("json", "pickle", "tempfile"):
        (tmp_path/f"{module}.py").write_text(SAY.format(str(tmp_path/"RAN")))
    code = ("import os\nfrom gslrm_mouse.experiments.runner import _process_pool\n"
            "with _process_pool(1) as pool: print(pool.submit(os.getpid).result() != os.getpid())")
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANGS)
    assert done.stdout.strip() == "True", done.stderr[-1000:]
    assert not (tmp_path/"RAN").exists()


# ---- pickles
def nested(opcodes=b""):
    "A pickle of sixty tuples, of which each holds the one before twice; the last is what `opcodes` finds on the stack."
    return b")\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60)) + opcodes + b"."


def many_copies(call):
    n, copies = 2**20, 20000
    function, encoding = b"c_codecs\nencode\nq\x00", b"X\x06\0\0\0latin1q\x02"
    text = b"X" + struct.pack("<I", n) + b"a"*n + b"q\x01"
    return b"\x80\x02X\x01\0\0\0Kq\x03" + function + text + encoding + b"](" + call*copies + b"e."


COLLIDING = b"".join(b"\x8a\x10" + (i*(2**61 - 1)).to_bytes(16, "little") + b"N" for i in range(10**5)) # one hash

PICKLES = { # a part of the sentence
    "frozenset": (b"\x80\x04\x8c\x01K(" + nested(b"h\x3c\x91"), "FROZENSET"),
    "set": (b"\x80\x04\x8c\x01K\x8f(" + nested(b"h\x3c\x90"), "EMPTY_SET"),
    "key": (b"\x80\x04\x8c\x01K" + nested(b"}h\x3cNs"), "a tuple as the key of a dict"),
    "nested": (b"\x80\x04\x8c\x01K" + nested(b"h\x3c"), "nested more than 30"),
    "dtype": (b"\x80\x04\x8c\x01K" + nested(b"cnumpy\ndtype\nh\x3c\x85R"), "the type of an array is no text"),
    "instructions": (b"\x80\x04\x8c\x01K" + b"N"*(6*MAX_ENTRIES) + b".", "more than 500000 instructions"),
    "entries": (b"\x80\x04\x8c\x01K](" + b"N"*(2*MAX_ENTRIES) + b"e.", "more than 100000 entries"),
    "keys": (b"\x80\x04\x8c\x01K}(" + COLLIDING + b"u.", "a int as the key"),
    "list of list": (b"\x80\x02X\x01\0\0\0K](NNNeq\x00](" + b"c__builtin__\nlist\nh\x00\x85R"*9 + b"e.", "_.list"),
    "encoded": (many_copies(b"h\x00h\x01h\x02\x86R"), "camera 0"),
}


def refuse_pickle(path, fragment): sentence(lambda: read_calibration(path, 64, 48), path.name, fragment)


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_end_soon(tmp_path, name):
    data, fragment = PICKLES[name]
    (tmp_path/"new_cam.pkl").write_bytes(data)
    seconds, size = in_a_process(refuse_pickle, tmp_path/"new_cam.pkl", fragment)
    assert seconds < 30 and size < 2**28


def test_encoded_text_is_kept_once(tmp_path):
    "Bytes of protocol 2, as they are in a rig: arrays that share their numbers."
    rig = mouse_rig()
    entries = pickle.loads(write_calibration(rig, tmp_path/"a.pkl").read_bytes())
    shared = entries[0]["K"]
    for entry in entries: entry["mapx"] = shared
    (tmp_path/"new_cam.pkl").write_bytes(pickle.dumps(entries, 2))
    assert torch.allclose(read_calibration(tmp_path/"new_cam.pkl", 1152, 1024).K, rig.K)


# ---- files of torch.save
NESTED = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) # as above, for protocol 2


@pytest.mark.parametrize("instructions, fragment", [
    (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R", "builtins.bytearray"),
    (b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R", "torch.FloatTensor"),
    (b"}(" + NESTED + b"0u", "a tuple of more"),
])
def test_torch_files_end_soon(tmp_path, instructions, fragment):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as f:
        f.writestr("archive/data.pkl", b"\x80\x02" + instructions + b".")
        f.writestr("archive/version", b"3\n")
    (tmp_path/"a.pt").write_bytes(out.getvalue())
    sentence(lambda: load_torch_file(tmp_path/"a.pt"), "a.pt", fragment)


# ---- YAML
ALIASES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i} {{" + ", ".join(f"k{j}: *a{i - 1}" for j in range(9)) + "}\n" for i in range(1, 9)) + "model: *a8\n"
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}']*20)}]}}\n" for i in range(1, 9))
REFERENCES = "a0: x\n" + "".join(f"a{i}: '" + f"${{a{i - 1}}}"*20 + "'\n" for i in range(1, 9))


@pytest.mark.parametrize("text", [ALIASES, MERGES])
@pytest.mark.parametrize("read", [GSLRMConfig.from_yaml, load_settings])
def test_yaml_bombs(tmp_path, text, read):
    (tmp_path/"a.yaml").write_text(text)
    sentence(lambda: read(tmp_path/"a.yaml"), "a.yaml", "an alias, which is not read")


def test_references_between_settings(tmp_path):
    (tmp_path/"a.yaml").write_text(REFERENCES)
    sentence(lambda: load_settings(tmp_path/"a.yaml"), "a.yaml", "refers to another setting")


def test_convert_with_a_bomb(tmp_path, capsys):
    (tmp_path/"a.yaml").write_text(ALIASES)
    (tmp_path/"a.pt").write_bytes(b"PK\x03\x04")
    command = ["convert", str(tmp_path/"a.pt"), str(tmp_path/"a.safetensors"), "--config", str(tmp_path/"a.yaml")]
    with pytest.raises(SystemExit) as e: main(command)
    assert e.value.code == 2
    assert "an alias, which is not read" in capsys.readouterr().err


# ---- images
@pytest.mark.parametrize("name, data", [
    ("ps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
    ("gif", b"GIF89a" + bytes(40)), ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("pdf", b"%PDF-1.4\n"),
])
def test_formats_of_images_that_are_not_admitted(tmp_path, name, data):
    (tmp_path/f"{name}.png").write_bytes(data)
    sentence(lambda: open_image(tmp_path/f"{name}.png"), f"{name}.png is no readable picture")


# ---- processes
HOLD = """
import sys
from gslrm_mouse.files import atomic_folder
with atomic_folder(sys.argv[1]) as folder:
    (folder/"begun").write_text("")
    print(folder, flush=True)
    sys.stdin.readline()
"""


def start_writing(out):
    "A process that writes a result until it reads a line; its hidden folder."
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], env=ENVIRONMENT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    return process, Path(process.stdout.readline().strip())


def names(folder): return sorted(p.name for p in folder.iterdir())


def test_two_demos_into_one_folder(tmp_path, capsys):
    first, hidden = start_writing(tmp_path/"demo")
    with pytest.raises(SystemExit) as e: main(["demo", str(tmp_path/"demo"), "--frames", "1"])
    assert e.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert len(message) == 1 and "demo is being written by another process" in message[0]
    assert names(hidden) == ["begun"] # the first is not disturbed
    first.communicate("\n", timeout=HANGS)
    assert first.returncode == 0
    assert (names(tmp_path), names(tmp_path/"demo")) == (["demo"], ["begun"])


def test_two_processes_begin_at_once(tmp_path):
    "One of them, or none, writes the result; the others say why not."
    code = HOLD.replace("sys.stdin.readline()", "pass")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path/"out")], env=ENVIRONMENT, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    ended = [(process.communicate(timeout=HANGS)[1], process.returncode) for process in processes]
    for error, status in ended:
        last = error.strip().splitlines()[-1:] or [""]
        assert status == 0 or last[0].startswith("FileExistsError"), error
    assert names(tmp_path) in ([], ["out"])


def test_killed_writer_is_cleaned_up(tmp_path):
    first, hidden = start_writing(tmp_path/"out")
    first.kill()
    first.wait(HANGS)
    assert names(tmp_path) == [hidden.name]
    second, _ = start_writing(tmp_path/"out")
    second.communicate("\n", timeout=HANGS)
    assert (second.returncode, names(tmp_path)) == (0, ["out"])
