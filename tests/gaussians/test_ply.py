"""PLY files of other writers, and files that mean harm."""
import re
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.ply import load_ply, save_ply

FIELDS = ("means", "quats", "scales", "opacities", "sh")


def cloud(n=7, degree=3):
    g = torch.Generator().manual_seed(0)
    r = lambda *s: torch.randn(*s, generator=g)
    return Gaussians(r(n, 3), r(n, 4), r(n, 3).exp(), torch.sigmoid(r(n)), r(n, (degree + 1)**2, 3))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_ply(cloud(), tmp_path_factory.mktemp("ply")/"whole.ply").read_bytes()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gsplat_writes_what_we_read(tmp_path, degree):
    export = pytest.importorskip("gsplat.exporter", reason="gsplat writes the file").export_splats
    a = cloud(degree=degree)
    export(a.means, a.scales.log(), a.quats, torch.logit(a.opacities), a.sh[:, :1], a.sh[:, 1:], format="ply", save_to=str(tmp_path/"g.ply"))
    b = load_ply(tmp_path/"g.ply")
    for k in FIELDS: torch.testing.assert_close(getattr(b, k), getattr(a, k), rtol=1e-5, atol=1e-6)


def test_without_normals(tmp_path):
    from plyfile import PlyData, PlyElement
    path = save_ply(cloud(), tmp_path/"a.ply")
    v = PlyData.read(str(path))["vertex"].data
    keep = [n for n in v.dtype.names if n not in ("nx", "ny", "nz")][::-1]               # another order, too
    bare = np.rec.fromarrays([v[n].astype("<f8") for n in keep], dtype=[(n, "<f8") for n in keep])
    PlyData([PlyElement.describe(bare, "vertex")], byte_order=">").write(str(tmp_path/"b.ply"))
    a, b = load_ply(path), load_ply(tmp_path/"b.ply")
    for k in FIELDS: torch.testing.assert_close(getattr(b, k), getattr(a, k))


def refused(tmp_path, data):
    (tmp_path/"x.ply").write_bytes(data)
    with pytest.raises(ValueError) as e: load_ply(tmp_path/"x.ply")
    assert "x.ply" in str(e.value) and "\n" not in str(e.value)
    return str(e.value)


def number_at(whole, column, value):
    "The file with one float32 of vertex 3 replaced."
    names = re.findall(rb"property float (\w+)", whole)
    at = whole.index(b"end_header\n") + 11 + 4*(3*len(names) + names.index(column))
    return whole[:at] + np.float32(value).tobytes() + whole[at + 4:]


def test_hostile_files(tmp_path, whole):
    body = whole.index(b"end_header\n") + 11
    assert "follow" in refused(tmp_path, whole.replace(b"vertex 7", b"vertex 1000000000"))
    assert "follow" in refused(tmp_path, whole.replace(b"vertex 7", b"vertex 6"))
    assert "header announces" in refused(tmp_path, whole.replace(b"vertex 7", b"vertex -7"))
    assert "announces" in refused(tmp_path, whole.replace(b"end_header", b"element none 1" + b"0"*30 + b"\nend_header"))
    assert "follow" in refused(tmp_path, whole[:-1])
    assert "follow" in refused(tmp_path, whole[:body])
    assert "no header" in refused(tmp_path, whole[:body - 5])
    assert "no header" in refused(tmp_path, b"")
    assert "no header" in refused(tmp_path, b"ply\n" + b"comment x\n"*10**6)
    assert "ASCII" in refused(tmp_path, whole.replace(b"binary_little_endian", b"ascii"))
    assert "property list" in refused(tmp_path, whole.replace(b"property float nx", b"property list uint float nx"))
    assert "lacks opacity" in refused(tmp_path, whole.replace(b"float opacity", b"float opacitx"))
    assert "44 f_rest" in refused(tmp_path, whole.replace(b"float f_rest_44", b"float f_west_44"))
    for value in (np.nan, np.inf): assert "in scale_1" in refused(tmp_path, number_at(whole, b"scale_1", value))
    (tmp_path/"x.ply").write_bytes(number_at(whole, b"scale_1", .5))                     # the same file with a number there is read
    torch.testing.assert_close(load_ply(tmp_path/"x.ply").scales[3, 1], torch.tensor(.5).exp())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2200), junk=st.binary(max_size=12), drop=st.integers(0, 12))
def test_damaged_files_are_read_or_refused(tmp_path, whole, cut, junk, drop):
    (tmp_path/"x.ply").write_bytes(whole[:cut] + junk + whole[cut + drop:])
    try: g = load_ply(tmp_path/"x.ply")
    except ValueError: return
    assert all(getattr(g, k).isfinite().all() for k in ("means", "quats", "sh"))
