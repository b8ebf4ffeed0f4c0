"""PLY files of other writers, damaged files and malicious ones."""
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.ply import load_ply, ply_world, save_ply

TENSORS = ("means", "quats", "scales", "opacities", "sh")
END = b"end_header\n"


def random_gaussians(n=7, degree=3):
    rng = torch.Generator().manual_seed(0)
    def randn(*shape): return torch.randn(*shape, generator=rng)
    means, quats, log_scales, logits = randn(n, 3), randn(n, 4), randn(n, 3), randn(n)
    return Gaussians(means, quats, log_scales.exp(), torch.sigmoid(logits), randn(n, (degree + 1)**2, 3))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The bytes of a good file."
    return save_ply(random_gaussians(), tmp_path_factory.mktemp("ply")/"whole.ply").read_bytes()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_files_of_gsplat_are_read(tmp_path, degree):
    exporter = pytest.importorskip("gsplat.exporter", reason="gsplat writes the file")
    g = random_gaussians(degree=degree)
    exporter.export_splats(
        g.means, g.scales.log(), g.quats, torch.logit(g.opacities), g.sh[:, :1], g.sh[:, 1:],
        format="ply", save_to=str(tmp_path/"g.ply"))
    loaded = load_ply(tmp_path/"g.ply")
    for name in TENSORS: torch.testing.assert_close(getattr(loaded, name), getattr(g, name), rtol=1e-5, atol=1e-6)


def test_without_normals(tmp_path):
    "Big-endian doubles in another order, without normals."
    from plyfile import PlyData, PlyElement
    path = save_ply(random_gaussians(), tmp_path/"a.ply")
    vertex = PlyData.read(str(path))["vertex"].data
    kept = [name for name in vertex.dtype.names if name not in ("nx", "ny", "nz")][::-1]
    columns = [vertex[name].astype("<f8") for name in kept]
    bare = np.rec.fromarrays(columns, dtype=[(name, "<f8") for name in kept])
    PlyData([PlyElement.describe(bare, "vertex")], byte_order=">").write(str(tmp_path/"b.ply"))
    a, b = load_ply(path), load_ply(tmp_path/"b.ply")
    for name in TENSORS: torch.testing.assert_close(getattr(a, name), getattr(b, name))


def test_empty_lines_in_a_header(tmp_path, whole):
    path = tmp_path/"x.ply"
    path.write_bytes(whole.replace(END, b"\n" + END))
    unit, up, to = ply_world(path)
    assert (unit, up.tolist(), to) == ("model", [0, 0, 1], None)


def with_value(whole, column, value):
    "The file with one float32 of vertex 3 replaced."
    names = re.findall(rb"property float (\w+)", whole)
    at = whole.index(END) + len(END) + 4*(3*len(names) + names.index(column))
    return whole[:at] + np.float32(value).tobytes() + whole[at + 4:]


def without_rotation(whole):
    for column in (b"rot_0", b"rot_1", b"rot_2", b"rot_3"): whole = with_value(whole, column, 0.)
    return whole


MALICIOUS = { # what was done: (change of a good file, part of the message)
    "a billion announced": (lambda data: data.replace(b"vertex 7", b"vertex 1000000000"), "follow"),
    "one too few announced": (lambda data: data.replace(b"vertex 7", b"vertex 6"), "follow"),
    "a negative count": (lambda data: data.replace(b"vertex 7", b"vertex -7"), "header announces"),
    "an empty element of 10³⁰": (
        lambda data: data.replace(b"end_header", b"element none 1" + b"0"*30 + b"\nend_header"), "announces"),
    "one byte cut off": (lambda data: data[:-1], "follow"),
    "no numbers": (lambda data: data[:data.index(END) + len(END)], "follow"),
    "half a header": (lambda data: data[:data.index(END) + len(END) - 5], "no header"),
    "an empty file": (lambda data: b"", "no header"),
    "a header without end": (lambda data: b"ply\n" + b"comment x\n"*10**6, "no header"),
    "text": (lambda data: data.replace(b"binary_little_endian", b"ascii"), "ASCII"),
    "a list property": (
        lambda data: data.replace(b"property float nx", b"property list uint float nx"), "property list"),
    "another name of opacity": (lambda data: data.replace(b"float opacity", b"float opacitx"), "lacks opacity"),
    "a column of SH too few": (lambda data: data.replace(b"float f_rest_44", b"float f_west_44"), "44 f_rest"),
    "not a number": (lambda data: with_value(data, b"scale_1", np.nan), "in scale_1"),
    "infinity": (lambda data: with_value(data, b"scale_1", np.inf), "in scale_1"),
    "a scale whose exponential is infinite": (lambda data: with_value(data, b"scale_1", 90.), "infinite scales"),
    "a quaternion of zeros": (without_rotation, "of length 0 or infinity"),
    "a quaternion too long": (lambda data: with_value(data, b"rot_2", 1e30), "of length 0 or infinity"),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_malicious_files_are_refused(tmp_path, whole, case):
    change, reason = MALICIOUS[case]
    path = tmp_path/"x.ply"
    path.write_bytes(change(whole))
    with pytest.raises(ValueError) as error: load_ply(path)
    message = str(error.value)
    assert reason in message and "x.ply" in message and "\n" not in message


def test_a_changed_number_is_read(tmp_path, whole):
    path = tmp_path/"x.ply"
    path.write_bytes(with_value(whole, b"scale_1", .5))
    torch.testing.assert_close(load_ply(path).scales[3, 1], torch.tensor(.5).exp())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2200), junk=st.binary(max_size=12), drop=st.integers(0, 12))
def test_damaged_files_are_read_or_refused(tmp_path, whole, cut, junk, drop):
    path = tmp_path/"x.ply"
    path.write_bytes(whole[:cut] + junk + whole[cut + drop:])
    try: g = load_ply(path)
    except ValueError: return
    assert all(getattr(g, name).isfinite().all() for name in ("means", "quats", "sh"))
