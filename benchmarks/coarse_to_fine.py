"""Time a step of optimisation from coarse to fine beside a step of `fit_gaussians` and print a markdown table.

Both begin with the same Gaussians on the visual hull of a procedural mouse and show the animal equally large: the crops
have the focal length that the whole images of `fit_gaussians` have. They take turns in one process, and CPU seconds are
counted. One row draws all six views in each step, as `fit_gaussians` does; the other draws two, as the qualities of
`gslrm_mouse reconstruct` do.

Ratios mean something on any machine; milliseconds only on a quiet one.
"""
import argparse
import statistics
import time

import torch

from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.gaussians.coarse_to_fine import FitStage, crop_cameras, fit_coarse_to_fine
from gslrm_mouse.gaussians.fit import Fit, fit_gaussians
from gslrm_mouse.gaussians.surface import surface_gaussians
from gslrm_mouse.preprocess.canonical import canonicalize
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.tracer import raytrace


def equal_size(views, focal):
    "Side of the crops whose mean focal length is `focal` pixels."
    per_pixel = crop_cameras(views, 100).K[:, 0, 0].mean().item()/100
    return round(focal/per_pixel)


def milliseconds(fit, steps):
    "Of CPU time for a step; what happens once is taken out by a second run with twice the steps."
    seconds = []
    for n in (steps, 2*steps):
        start = time.process_time()
        fit(n)
        seconds.append(time.process_time() - start)
    return 1e3*(seconds[1] - seconds[0])/steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="of the whole images, pixels")
    parser.add_argument("--steps", type=int, default=20, help="of a timing")
    parser.add_argument("--repeats", type=int, default=5, help="timings whose median is shown")
    args = parser.parse_args()
    torch.set_num_threads(1)
    views = raytrace(mouse_scene(100), mouse_rig(), 1)
    whole = canonicalize(views, FACELIFT_DOMAIN, choose="coverage", size=args.size)
    start = surface_gaussians(views)
    in_model = start.transform(whole.to_source.inverse)
    size = equal_size(views, whole.views.cameras.K[:, 0, 0].mean().item())

    fits = {
        "fit_gaussians": lambda n: fit_gaussians(whole.views, Fit(steps=n), start=in_model),
        "coarse to fine, six views a step": lambda n: fit_coarse_to_fine(views, start, [FitStage(size, n, views=6)]),
        "coarse to fine, two views a step": lambda n: fit_coarse_to_fine(views, start, [FitStage(size, n)]),
    }
    for fit in fits.values(): fit(2) # compiles
    times = {name: [] for name in fits}
    for _ in range(args.repeats):
        for name, fit in fits.items(): times[name].append(milliseconds(fit, args.steps))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{len(start)} Gaussians, images of {args.size} px, crops of {size} px\n")
    print("| optimisation | ms a step | fit_gaussians / this |\n|---|---|---|")
    for name, ms in medians.items(): print(f"| {name} | {ms:.1f} | {medians['fit_gaussians']/ms:.1f} |")


if __name__ == "__main__": main()
