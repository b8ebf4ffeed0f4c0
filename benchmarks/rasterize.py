"""Time the CPU rasterizer beside its twin in plain torch, in the same run, and print a markdown table.

Ratios between columns of one row mean something on any machine; milliseconds only on a quiet one. The twin works in blocks of 8 x 8
pixels, each with the Gaussians that reach it, one view after the other. Extra memory is what a forward and a backward pass of the
kernels (forward only where the table says so) add to the peak of a fresh process. Where torch sees a CUDA device, a last column holds gsplat's
milliseconds on it, and a last line its frames per second for 500,000 Gaussians in six views of 512 x 512.
"""
import argparse
import math
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

import torch

from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.gaussians.rasterize import rasterization
from gslrm_mouse.gaussians.reference import rasterize_reference
from gslrm_mouse.threads import num_threads

SIZES = dict(small=(4096, 64, 1, True), training=(24576, 64, 4, True), full=(98304, 128, 4, True), large=(500_000, 256, 1, False))  # Gaussians, pixels, views, backward


def scene(n, size, views):
    "A shell of Gaussians with thin haze around it, 0.7 pixels wide each, seen from all sides at distance 2.7."
    g = torch.Generator().manual_seed(0)
    haze = torch.arange(n) < 0.3*n
    means = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)*torch.tensor([.5, .4, .6])
    means[haze] = .4*torch.randn(int(haze.sum()), 3, generator=g)
    opacities = torch.sigmoid(2*torch.randn(n, generator=g))*torch.where(haze, .2, 1.)
    cams = orbit([360*v/views for v in range(views)], 20., 2.7, 45., size)
    scales = .7*2.7/cams.K[0, 0, 0]*torch.exp(.4*torch.randn(n, 3, generator=g))
    tensors = means, torch.randn(n, 4, generator=g), scales, opacities, torch.rand(n, 3, generator=g)
    return [x.float().requires_grad_() for x in tensors], cams


def kernels(x, cams):
    return rasterization(*x, cams.w2c, cams.K, cams.width, cams.height)[:2]


def twin(x, cams):
    pics = [rasterize_reference(*x, w2c, K, cams.width, cams.height, block=8)[:2] for w2c, K in zip(cams.w2c, cams.K)]
    return [torch.stack(p) for p in zip(*pics)]


def milliseconds(engine, x, cams, backward):
    "One pass; without `backward` no graph is built."
    for v in x: v.grad = None
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        image, alpha = engine(x, cams)
        if backward: (image.square().sum() + alpha.sum()).backward()
    return 1e3*(time.perf_counter() - start)


def cuda_milliseconds(x, cams, backward, repeats=10):
    "Median of gsplat's passes on the GPU, after one to warm up."
    x, cams = [v.detach().cuda().requires_grad_() for v in x], cams.to("cuda")
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        milliseconds(kernels, x, cams, backward)
        torch.cuda.synchronize()
        times.append(1e3*(time.perf_counter() - start))
    return statistics.median(times[1:])


def peak():
    "Largest resident size of this process so far, MB. On Linux from /proc, since getrusage there remembers the parent's."
    status = Path("/proc/self/status")
    if status.exists(): return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))/1e3
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(1e6 if sys.platform == "darwin" else 1e3)


def extra_memory(n, size, views, backward, n_threads):
    "Run in a process of its own: growth of the peak, after a small scene has loaded all code."
    torch.set_num_threads(n_threads)
    with num_threads(n_threads):
        milliseconds(kernels, *scene(64, 16, 1), True)
        x, cams = scene(n, size, views)
        before = peak()
        milliseconds(kernels, x, cams, backward)
    return peak() - before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="rows of the table")
    parser.add_argument("--repeats", type=int, default=5, help="passes of the kernels whose median is shown")
    parser.add_argument("--twin-repeats", type=int, default=1, help="passes of the twin; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=1, help="threads of the kernels and of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    milliseconds(kernels, *scene(64, 16, 1), True)
    cuda = torch.cuda.is_available()
    print("| Gaussians | picture | views | pass | kernels ms | twin ms | twin / kernels | extra memory MB |" + " gsplat on CUDA ms |"*cuda + "\n|---|---|---|---|---|---|---|---|" + "---|"*cuda)
    for name in args.sizes:
        n, size, views, both = SIZES[name]
        x, cams = scene(n, size, views)
        for backward in (False, True)[:1 + both]:
            times = {kernels: [], twin: []}
            for i in range(max(args.repeats, args.twin_repeats)):
                for engine, k in ((kernels, args.repeats), (twin, args.twin_repeats)):
                    with num_threads(args.threads):
                        if i < k: times[engine].append(milliseconds(engine, x, cams, backward))
            a, b = (statistics.median(t) if t else math.nan for t in times.values())
            with multiprocessing.get_context("spawn").Pool(1) as pool: memory = pool.apply(extra_memory, (n, size, views, backward, args.threads))
            print(f"| {n:,} | {size}² | {views} | {'forward + backward' if backward else 'forward'} | {a:.1f} | {b:,.0f} | {b/a:.0f} | {memory:.0f} |" + (f" {cuda_milliseconds(x, cams, backward):.2f} |" if cuda else ""), flush=True)
    if cuda: print(f"gsplat on CUDA, 500,000 Gaussians, six views of 512²: {6e3/cuda_milliseconds(*scene(500_000, 512, 6), False):.0f} pictures per second")


if __name__ == "__main__": main()
