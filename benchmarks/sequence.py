"""Follow procedural mice and make each frame anew; scores of held-out views, flicker, lost points and CPU seconds.

Every frame is seen by the six cameras of the rig at 576 × 512 px and scored in the first three held-out cameras.
Flicker is the mean absolute difference of what two following frames change in the rendering and in the truth, over the
foreground, in levels of 255. A Gaussian of the first frame that lies within 1 mm of the surface belongs to one
ellipsoid of the mouse and stays at its place there: its distance from that place is the error of a point.
"""
import argparse
import time

import numpy as np
import torch

from gslrm_mouse.cameras.presets import heldout_cameras, mouse_rig
from gslrm_mouse.gaussians.rasterize import render
from gslrm_mouse.gaussians.surface import surface_gaussians
from gslrm_mouse.metrics import image_scores
from gslrm_mouse.reconstruction.prediction import optimise_scene, quality_of
from gslrm_mouse.reconstruction.sequence import find_neighbours, follow, start_sequence
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.tracer import raytrace


class Scores:
    "Of one way to make all frames."
    def __init__(self):
        self.rows, self.flicker, self.before, self.seconds = [], [], None, 0.

    def add(self, g, truth):
        images = []
        for view in truth:
            image, alpha = render(g, view.cameras, eps2d=0.)
            self.rows += image_scores(image, alpha, view.images, view.alpha)
            images.append(image.clamp(0, 1))
        if self.before is not None:
            for image, view, old_image, old_view in zip(images, truth, *self.before):
                change = (image - old_image) - (view.images - old_view.images)
                self.flicker.append(255*change.abs()[view.alpha > .5].mean().item())
        self.before = images, truth

    def row(self, name, frames) -> str:
        foreground, iou = (np.mean([r[key] for r in self.rows]) for key in ("psnr_fg", "iou"))
        return f"| {name} | {foreground:.2f} | {iou:.3f} | {np.mean(self.flicker):.1f} | {self.seconds/frames:.2f} |"


def anew(views, name):
    quality = quality_of(name)
    return optimise_scene(surface_gaussians(views, quality.voxels), views, quality)


def place_on_body(scene, points):
    "Ellipsoid of each point, its place there in the unit ball, and whether it is within 1 mm of the surface."
    local = np.einsum("nij,pnj->pni", scene.A, points[:, None] - scene.centers)
    depth = np.linalg.norm(local, axis=-1)
    n, each = depth.argmin(1), np.arange(len(points))
    radius = 3**.5/np.linalg.norm(scene.A[n], axis=(1, 2))
    return n, local[each, n], np.abs(depth[each, n] - 1)*radius < 1


def true_points(scene, n, local): return scene.centers[n] + np.linalg.solve(scene.A[n], local[..., None])[..., 0]


def timed(scores, f, *args):
    start = time.process_time()
    result = f(*args)
    scores.seconds += time.process_time() - start
    return result


def compare(seed, frames):
    "Print the table of one mouse."
    rig, held_out = mouse_rig().resized(576, 512), [c.resized(c.width//2, c.height//2) for c in heldout_cameras()][:3]
    scores = {name: Scores() for name in ("sequence", "draft", "good")}
    errors = []
    for i in range(frames):
        scene = mouse_scene(seed, i/20)
        views, truth = raytrace(scene, rig, 2), [raytrace(scene, camera, 2) for camera in held_out]
        made = {name: timed(scores[name], anew, views, name) for name in ("draft", "good")}
        if i == 0:
            followed = key = start_sequence(made["good"], views, 0)
            n, local, on_surface = place_on_body(scene, followed.gaussians.means.double().numpy())
        else:
            neighbours = find_neighbours(key.gaussians)
            followed = timed(scores["sequence"], follow, followed, views, i, neighbours, quality_of("good"))
            if followed.key == i: key = followed
            error = followed.gaussians.means.double().numpy() - true_points(scene, n, local)
            errors.append(np.linalg.norm(error, axis=1)[on_surface])
        for name, g in (made | dict(sequence=followed.gaussians)).items(): scores[name].add(g, truth)
    median, last = np.median(np.concatenate(errors)), np.median(errors[-1])
    print(f"\nmouse {seed}, {frames} frames; error of {on_surface.sum()} surface points in mm: median {median:.2f}, "
          f"in the last frame {last:.2f}\n")
    print("| frames | foreground, dB | IoU | flicker | CPU s a frame |\n|---|---|---|---|---|")
    for name, s in scores.items(): print(s.row(name if name == "sequence" else f"{name}, each anew", frames))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the mice")
    parser.add_argument("--frames", type=int, default=20, help="a twentieth of a second apart")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds: compare(seed, args.frames)


if __name__ == "__main__": main()
