"""Time the CPU rasterizer beside its reference implementation in plain torch and print a markdown table.

Both run in turn in one process. The reference works in blocks of 8 x 8 pixels, each with the Gaussians that reach it,
one view after the other. Extra memory is what a forward and a backward pass of the kernels (forward only where the
table says so) add to the peak of a fresh process. Where torch sees a CUDA device, a last column holds gsplat's
milliseconds on it, and a last line its frames per second for 500,000 Gaussians in six views of 512 x 512.

Ratios between columns of one row mean something on any machine; milliseconds only on a quiet one.
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

SIZES = dict( # Gaussians, pixels, views, whether the backward pass is timed, too
    small=(4096, 64, 1, True),
    training=(24576, 64, 4, True),
    full=(98304, 128, 4, True),
    large=(500_000, 256, 1, False),
)


def scene(n, size, views):
    "A shell of Gaussians with thin haze around it, 0.7 pixels wide each, seen from all sides at distance 2.7."
    rng = torch.Generator().manual_seed(0)
    def randn(*shape): return torch.randn(*shape, generator=rng)
    is_haze = torch.arange(n) < 0.3*n
    means = torch.nn.functional.normalize(randn(n, 3), dim=-1)*torch.tensor([.5, .4, .6])
    means[is_haze] = .4*randn(int(is_haze.sum()), 3)
    opacities = torch.sigmoid(2*randn(n))*torch.where(is_haze, .2, 1.)
    cams = orbit([360*view/views for view in range(views)], 20., 2.7, 45., size)
    scales = .7*2.7/cams.K[0, 0, 0]*torch.exp(.4*randn(n, 3))
    quats, colors = randn(n, 4), torch.rand(n, 3, generator=rng)
    return [x.float().requires_grad_() for x in (means, quats, scales, opacities, colors)], cams


def kernels(gaussians, cams):
    return rasterization(*gaussians, cams.w2c, cams.K, cams.width, cams.height)[:2]


def reference(gaussians, cams):
    views = [rasterize_reference(*gaussians, w2c, K, cams.width, cams.height, block=8)[:2]
             for w2c, K in zip(cams.w2c, cams.K)]
    images, alphas = zip(*views)
    return torch.stack(images), torch.stack(alphas)


def milliseconds(rasterizer, gaussians, cams, backward):
    "One pass; without `backward` no graph is built."
    for x in gaussians: x.grad = None
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        image, alpha = rasterizer(gaussians, cams)
        if backward: (image.square().sum() + alpha.sum()).backward()
    return 1e3*(time.perf_counter() - start)


def cuda_milliseconds(gaussians, cams, backward, repeats=10):
    "Median of gsplat's passes on the GPU, after one to warm up."
    gaussians, cams = [x.detach().cuda().requires_grad_() for x in gaussians], cams.to("cuda")
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        milliseconds(kernels, gaussians, cams, backward)
        torch.cuda.synchronize()
        times.append(1e3*(time.perf_counter() - start))
    return statistics.median(times[1:])


def peak_memory():
    "Largest resident size of this process so far, MB. On Linux from /proc, since getrusage there has the parent's."
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0])/1e3
    import resource # not on Windows
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/unit


def extra_memory(n, size, views, backward, n_threads):
    "Run in a process of its own: growth of the peak, after a small scene has loaded all code."
    torch.set_num_threads(n_threads)
    with num_threads(n_threads):
        milliseconds(kernels, *scene(64, 16, 1), True)
        gaussians, cams = scene(n, size, views)
        before = peak_memory()
        milliseconds(kernels, gaussians, cams, backward)
    return peak_memory() - before


def in_turn(gaussians, cams, backward, args):
    "Median milliseconds of the kernels and of the reference (nan if left out), which take turns."
    repeats = {kernels: args.repeats, reference: args.reference_repeats}
    times = {rasterizer: [] for rasterizer in repeats}
    for i in range(max(repeats.values())):
        for rasterizer, n in repeats.items():
            if i >= n: continue
            with num_threads(args.threads):
                times[rasterizer].append(milliseconds(rasterizer, gaussians, cams, backward))
    return [statistics.median(t) if t else math.nan for t in times.values()]


def print_header(cuda):
    names = ["Gaussians", "image", "views", "pass", "kernels ms", "reference ms", "reference / kernels",
             "extra memory MB"]
    if cuda: names.append("gsplat on CUDA ms")
    print("| " + " | ".join(names) + " |\n|" + "---|"*len(names))


def print_row(n, size, views, backward, args):
    gaussians, cams = scene(n, size, views)
    kernel_ms, reference_ms = in_turn(gaussians, cams, backward, args)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        memory = pool.apply(extra_memory, (n, size, views, backward, args.threads))
    cells = [
        f"{n:,}", f"{size}²", f"{views}", "forward + backward" if backward else "forward",
        f"{kernel_ms:.1f}", f"{reference_ms:,.0f}", f"{reference_ms/kernel_ms:.0f}", f"{memory:.0f}",
    ]
    if torch.cuda.is_available(): cells.append(f"{cuda_milliseconds(gaussians, cams, backward):.2f}")
    print("| " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="rows of the table")
    parser.add_argument("--repeats", type=int, default=5, help="passes of the kernels whose median is shown")
    parser.add_argument("--reference-repeats", type=int, default=1, help="passes of the reference; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=1, help="threads of the kernels and of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    milliseconds(kernels, *scene(64, 16, 1), True)
    cuda = torch.cuda.is_available()
    print_header(cuda)
    for name in args.sizes:
        n, size, views, has_backward = SIZES[name]
        print_row(n, size, views, False, args)
        if has_backward: print_row(n, size, views, True, args)
    if cuda:
        rate = 6e3/cuda_milliseconds(*scene(500_000, 512, 6), False)
        print(f"gsplat on CUDA, 500,000 Gaussians, six views of 512²: {rate:.0f} images per second")


if __name__ == "__main__": main()
