"Numbers that the original computed with random weights and data. They lie beside a checkout of the developers and are not shipped."
import numpy as np, pytest, torch
from conftest import DATA
from gslrm_mouse.cameras.pinhole import Cameras, orbit
from gslrm_mouse.models.facelift import facelift_picture, facelift_ply, inria_camera_matrices
from gslrm_mouse.cameras.rotations import quat_to_matrix
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.training import losses
from gslrm_mouse.metrics import psnr
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig
from gslrm_mouse.training.step import lr_factor


def numbers(name):
    path = DATA/"parity"/name
    if not path.is_file(): pytest.skip(f"the parity numbers ../shared/data/parity/{name} are not on this machine")
    with np.load(path) as z: return {k: torch.from_numpy(z[k]) for k in z}


@pytest.fixture(scope="module")
def a(): return numbers("a_released_flags.npz")


@pytest.fixture(scope="module")
def d(): return numbers("d_extras.npz")


def K_of(fxfycxcy):
    K = torch.zeros(*fxfycxcy.shape[:-1], 3, 3, dtype=fxfycxcy.dtype)
    K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2], K[..., 2, 2] = *fxfycxcy.unbind(-1), 1
    return K


def close(got, want, tol=2e-5):
    assert got.shape == want.shape, (got.shape, want.shape)
    torch.testing.assert_close(got.to(want), want, atol=tol, rtol=0)


CONFIG = GSLRMConfig(image_size=32, d=64, d_head=32, n_layer=2)


def network(a):
    m = GSLRM(CONFIG)
    m.load_state_dict({k[6:]: v for k, v in a.items() if k.startswith("param/")})
    return m.eval(), a["in/image"].permute(0, 1, 3, 4, 2), Cameras(K_of(a["in/fxfycxcy"]), torch.linalg.inv(a["in/c2w"].double()), 32, 32)


def test_every_stage_of_the_network(a):
    model, images, cams = network(a)
    got, wanted = model.forward_stages(images, cams), {k.split("/")[1]: v for k, v in a.items() if k[:4] in ("mid/", "out/")}
    assert len(wanted) == 15
    for k, v in wanted.items(): close(got[k], v, 5e-5 if k == "act_rotation" else 2e-5)


def test_float32_poses_are_enough(a):
    "The original is given c2w in float32; so are we, here."
    model, images, cams = network(a)
    g = model(images, Cameras(cams.K, a["in/w2c"], 32, 32))
    close(g.means, a["out/xyz"])
    close(g.scales, a["out/act_scaling"])
    close(g.opacities[..., None], a["out/act_opacity"])


@pytest.mark.parametrize("broken", ["clip", "moment", "views swapped", "transposed rotation"])
def test_the_comparison_can_fail(a, broken):
    from dataclasses import replace
    model, images, cams = network(a)
    if broken == "clip": model.config = replace(CONFIG, clip_xyz=True)
    if broken == "moment": model.config = replace(CONFIG, rays="moment")
    if broken == "views swapped": images = images.flip(1)
    if broken == "transposed rotation":
        w2c = cams.w2c.clone()
        w2c[..., :3, :3] = cams.R.mT
        cams = replace(cams, w2c=w2c)
    assert (model(images, cams).means - a["out/xyz"]).abs().max() > 1e-2


def test_camera_matrices(d):
    for i, (H, W) in enumerate(d["camera/hw"].tolist()):
        m = inria_camera_matrices(Cameras(K_of(d["camera/fxfycxcy"][i:i + 1]), torch.linalg.inv(d["camera/c2w"][i:i + 1].double()), W, H))
        for mine, theirs in dict(view="view_T", projection="proj_T", full="viewproj_T", tanfov="tanfov", center="center").items(): close(m[mine][0], d[f"camera/{theirs}"][i])


@pytest.mark.parametrize("elevation", [0, 20])
def test_turntable(d, elevation):
    rig = orbit(270 + 60*torch.arange(6), elevation, 2.7, 50., 64)
    close(torch.linalg.inv(rig.w2c.double()), d[f"turntable/c2w_elev{elevation}"])
    close(rig.K, K_of(d["turntable/fxfycxcy"]))


def test_covariance(d):
    close(quat_to_matrix(d["gs/rotation"]), d["gs/rotmat"])
    S = Gaussians(d["gs/xyz"], d["gs/rotation"], d["gs/scaling"].exp(), torch.sigmoid(d["gs/opacity"][:, 0]), d["gs/features"]).covariances()
    close(S.flatten(1)[:, [0, 1, 2, 4, 5, 8]], d["gs/covariance6"])


def test_filters(d):
    from gslrm_mouse.gaussians import filters as module
    F, named = module.Filters, module.FILTERS
    g = Gaussians(d["gs/xyz"], d["gs/rotation"], d["gs/scaling"].exp(), torch.sigmoid(d["gs/opacity"][:, 0]), d["gs/features"])
    for k, f in dict(inference=named["facelift"], training=named["training"], opacity_only_0p05=F(.05), scaling_0p1_only=F(None, .1), floater_0p6_only=F(None, floater=.6), nearfar_0p05_0p95=F(None, near_far=(.05, .95))).items():
        assert f.mask(g, d["filter/cam_origins"]).nonzero()[:, 0].tolist() == d[f"filter/kept_{k}"].tolist(), k


def test_ply_bytes(d):
    p = {k: d[f"gs/{k}"][:6] for k in ("xyz", "features", "scaling", "rotation", "opacity")}
    assert facelift_ply(p) == d["ply/sh0_bytes"].numpy().tobytes()
    assert facelift_ply(p, .5) == d["ply/sh0_modifier0p5_bytes"].numpy().tobytes()
    sh1 = {**p, "features": d["ply/sh1_features"]}
    assert facelift_ply(sh1, viewer=False) == d["ply/sh1_noviewer_bytes"].numpy().tobytes()
    theirs = d["ply/sh1_viewer_bytes"].numpy().tobytes()
    assert len(facelift_ply(sh1)) == len(theirs) and facelift_ply(sh1) != theirs                   # their padding puts f_rest in wrong columns


def test_pictures_of_the_data_set(d):
    for i, rgba in enumerate(d["dataset/rgba_u8"].numpy()):
        assert torch.equal(facelift_picture(rgba, 16).permute(2, 0, 1), d["dataset/image_white_keepalpha"][i])
        assert torch.equal(facelift_picture(rgba, 16, .5, alpha=False).permute(2, 0, 1), d["dataset/image_gray_removealpha"][i])
    cams = Cameras(K_of(d["dataset/fxfycxcy_json"]), d["dataset/w2c"], 24, 24).resized(16, 16)
    close(cams.K, K_of(d["dataset/fxfycxcy"]))
    close(torch.linalg.inv(cams.w2c), d["dataset/c2w"])


def test_metrics(d):
    image, truth = (d[k][0].permute(0, 2, 3, 1)[..., :3] for k in ("loss/rendering", "loss/target_rgba"))
    close(psnr(image, truth), d["metric/psnr"], 1e-4)


def test_losses(d):
    last = lambda x: x.movedim(2, -1)
    flat = lambda x: last(x.expand(2, 2, 3, 32, 32)).flatten(2, 3)
    image, rgba, rays = last(d["loss/rendering"]), last(d["loss/target_rgba"]), (flat(d["loss/xyz"]), flat(d["loss/ray_o"]), flat(d["loss/ray_d"]))
    for got, k in ((losses.l2_loss(image, rgba[..., :3]), "l2_loss"), (losses.ssim_loss(image, rgba[..., :3]), "ssim_loss"), (losses.pixelalign_loss(*rays), "pixelalign_unmasked"),
                   (losses.pixelalign_loss(*rays, rgba[..., 3].flatten(2)), "pixelalign_loss"), (losses.pointsdist_loss(*rays[:2]), "pointsdist_loss")): close(got, d[f"loss/value_{k}"])


def test_learning_rate(d):
    "The original's schedule up to its end; there it climbs again, and ours stays down."
    theirs = d["lr/cosine_warm5_total40_base1e-4"].numpy()
    ours = np.array([1e-4*lr_factor(i, 5, 40, first=0) for i in range(45)])
    np.testing.assert_allclose(ours[:41], theirs[:41], atol=1e-12)
    assert theirs[44] > theirs[40] and not ours[41:].any()
