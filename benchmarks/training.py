"""Optimisation steps per second of pretraining, and where the time goes: data, network, rasterizer, optimizer.

Cold: every scene is traced while the network trains, as at the beginning of a training run. Warm: the scenes lie in the
cache. CPU seconds count all threads, those of the data too; on a busy machine they mean more than the clock does.
"""
import argparse
import contextlib
import io
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from gslrm_mouse.training.loop import run_training
from gslrm_mouse.training.pretraining import PretrainSettings
from gslrm_mouse.training.runs import read_log

SHAPE = dict(size=64, d=256, layers=6, batch=4, steps=20, scenes=12000, threads=1)
RUNS = (("warm", 0), ("warm", 1), ("cold", 0), ("cold", 1), ("cold", 2)) # scenes, data threads


def profiled_settings(args, workers):
    n_steps = args.steps + 1 # the first one is not measured
    s = PretrainSettings(
        size=args.size, d=args.d, n_layer=args.layers, batch=args.batch, steps=n_steps, n_scenes=args.scenes).settings
    training = replace(
        s.training,
        dataloader=replace(s.training.dataloader, num_workers=workers),
        checkpointing=replace(s.training.checkpointing, checkpoint_every=n_steps))
    return replace(s, profile=True, training=training)


def measured(args, cache, workers, folder):
    "Steps per second, CPU seconds per step, and shares of the time, without the first step."
    settings = profiled_settings(args, workers)
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()): run_training(settings, folder, cache=cache, device=args.device)
    cpu_seconds = time.process_time() - start
    records = [r for r in read_log(folder) if "event" not in r][1:]
    total = sum(r["seconds"] + r["wait"] for r in records)
    parts = ("model", "render", "optimizer")
    shares = {part: sum(r.get(f"seconds_{part}", 0) for r in records)/total for part in parts}
    shares["data"] = sum(r["wait"] for r in records)/total
    return len(records)/total, cpu_seconds/(len(records) + 1), shares


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SHAPE.items(): parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.size} px, d {args.d}, {args.layers} layers, {args.batch} scenes per step, {args.steps} steps, "
          f"{args.threads} thread(s) for the network")
    print("| scenes | data threads | steps/s | CPU s/step | waiting for data | network | rasterizer | optimiser |\n"
          "|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        measured(args, tmp/"warm", 1, tmp/"first") # compiles, and fills the cache
        for name, workers in RUNS:
            cache = tmp/"warm" if name == "warm" else tmp/f"cold{workers}"
            rate, cpu, share = measured(args, cache, workers, tmp/f"{name}{workers}")
            shares = " | ".join(f"{share[part]:.1%}" for part in ("data", "model", "render", "optimizer"))
            print(f"| {name} | {workers} | {rate:.2f} | {cpu:.2f} | {shares} |", flush=True)


if __name__ == "__main__": main()
