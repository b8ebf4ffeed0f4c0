"""Updates per second of pretraining, and where the time goes: waiting for data, the network, the rasterizer, the optimiser.

Cold: every scene is traced while the network trains, as in the first part of a run. Warm: they lie in the cache. CPU seconds count all threads, the
data's too; on a busy machine they mean more than the clock does.
"""
import argparse
import contextlib
import io
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from gslrm_mouse.training.runs import read_log
from gslrm_mouse.training.loop import run_training
from gslrm_mouse.training.pretraining import PretrainSettings


def measured(args, cache, workers, folder):
    "Updates per second, CPU seconds per update, and shares of the time, without the first update."
    s = PretrainSettings(size=args.size, d=args.d, n_layer=args.layers, batch=args.batch, steps=args.updates + 1, n_scenes=args.scenes).settings
    s = replace(s, profile=True, training=replace(s.training, dataloader=replace(s.training.dataloader, num_workers=workers), checkpointing=replace(s.training.checkpointing, checkpoint_every=args.updates + 1)))
    cpu = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()): run_training(s, folder, cache=cache, device=args.device)
    cpu = time.process_time() - cpu
    log = [r for r in read_log(folder) if "event" not in r][1:]
    total = sum(r["seconds"] + r["wait"] for r in log)
    share = {k: sum(r.get(f"seconds_{k}", 0) for r in log)/total for k in ("model", "render", "optimizer")}
    share["data"] = sum(r["wait"] for r in log)/total
    return len(log)/total, cpu/(len(log) + 1), share


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("size", 64), ("d", 256), ("layers", 6), ("batch", 4), ("updates", 20), ("scenes", 12000), ("threads", 1)): parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.size} px, d {args.d}, {args.layers} layers, {args.batch} scenes per update, {args.updates} updates, {args.threads} thread(s) for the network")
    print("| scenes | data threads | updates/s | CPU s/update | waiting for data | network | rasterizer | optimiser |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        measured(args, tmp/"warm", 1, tmp/"first")                              # compiles, and fills the cache
        for name, workers in (("warm", 0), ("warm", 1), ("cold", 0), ("cold", 1), ("cold", 2)):
            rate, cpu, share = measured(args, tmp/"warm" if name == "warm" else tmp/f"cold{workers}", workers, tmp/f"{name}{workers}")
            print(f"| {name} | {workers} | {rate:.2f} | {cpu:.2f} | {share['data']:.1%} | {share['model']:.1%} | {share['render']:.1%} | {share['optimizer']:.1%} |", flush=True)


if __name__ == "__main__": main()
