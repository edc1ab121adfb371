"""Several processes, on one machine or on many: torchrun --nproc_per_node=N -m extra.real.train_sft ... Without torchrun nothing of this
happens.

Every process holds the same plan, takes its share of each batch, and gets the gradient of the whole batch: the weights are those of one
process, up to rounding. Default: every process holds the router (DistributedDataParallel). --fsdp: each block's weights, gradients and
moments are divided among them, and put together while they are needed (fully_shard). gloo carries CPU tensors, NCCL those of GPUs.

1. A loss is a mean over what a process has: answer tokens, or pairs. Each process multiplies its own by its part of the whole batch, and
   by the number of processes, because both wrappers average gradients: `of_whole_batch`.
2. Process 0 goes first and reads the data, while the others wait. They begin when it scores, where each takes its part of the files, or at
   `spread`. Process 0 alone writes and prints.
3. A saved state is what one process would have saved: any number of processes resumes from it, with --fsdp or without.
4. The process that fails first says why in one line, and the others nothing; torchrun ends them, and adds a report of its own.

Several machines: the same command on each, torchrun --nnodes=M --rdzv_backend=c10d --rdzv_id=ANY --rdzv_endpoint=HOST:PORT; OUT, models
and data in a folder that they share. With --max-restarts=K torchrun itself starts a failed job again, up to K times.

Memory of a process: the whole router once, in float32 (in phase 2 on its GPU, to score with it as pi_ref; in phase 1, with --fsdp, on the
CPU, and block by block from there); from then on 16 bytes a parameter, divided by N with --fsdp. Process 0 also gathers 12 bytes a
parameter on the CPU for each saved state: see --save_every. No torch.compile: every batch has its own length.
"""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from extra.gpt import GPT, Router
from toy_experts import run as script
from toy_experts.run import UserError, check_same, load, write

FOREVER = timedelta(days=30)
GONE = "another process of this job has ended, or the job was told to; the same command again resumes from the last saved state"
store = voice = None  # torchrun's store, a few words that all processes read and write; two connections, because a wait blocks one


def torchrun():
    """Has torchrun started this process?"""
    return dist.is_torchelastic_launched()


def alone():
    return not dist.is_initialized()


def first():
    """True in the process that writes and prints: the only one, or process 0."""
    return alone() or dist.get_rank() == 0


def check(s):
    """UserError for --fsdp without torchrun."""
    if s.fsdp and not torchrun():
        raise UserError("--fsdp divides the router among several processes: torchrun --nproc_per_node=N ... starts them")


# --- a training step ----------------------------------------------------------------------------------------------------------------------


def spread(router, device, fsdp=False):
    """The router, ready to train on `device`, or on this process's GPU: as it is, replicated, or divided. Its forward stays the same."""
    if alone():
        return router.to(device)
    release()
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type not in ("cpu", "cuda") or device.type == "cuda" and here > torch.cuda.device_count():
        raise UserError(f"--device {device.type}: this machine has too few for {here} processes; use a smaller --nproc_per_node")
    if fsdp:
        from torch.distributed.device_mesh import init_device_mesh  # slow to import
        from torch.distributed.fsdp import fully_shard
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        nothing = {p.requires_grad_(False) for p in router.parameters() if not p.numel()}  # W without experts, which cannot be divided
        for part in [*router.lm.blocks, router]:  # the router last: embedding, head, norm and W are what is left
            fully_shard(part, mesh=mesh, ignored_params=nothing)
        return router.to(device)
    router.to(device)
    # W stays outside: on pairs it has no gradient, for which DDP would wait
    router.W.weight.register_hook(average)
    router.lm = torch.nn.parallel.DistributedDataParallel(router.lm, forward_sync_buffers=False, gradient_as_bucket_view=True)
    return router


def average(grad):
    dist.all_reduce(grad := grad.contiguous())
    return grad / dist.get_world_size()


def share(rows):
    """This process's part of a batch, rows (B,), and 1; where there are fewer rows than processes, some get a row that counts 0."""
    if alone():
        return rows, 1
    mine = rows[dist.get_rank()::dist.get_world_size()]
    return (mine, 1) if len(mine) else (rows[:1], 0)


def of_whole_batch(loss, terms, count, weight=1, in_S=0):
    """What a process computed on its share of a batch, made that of the whole batch.

    loss and terms (a dict of numbers, and perhaps the list "routing") are means over `count` tokens or pairs of this share,
    "routing" over the in_S tokens in S; weight: of `share`. Returns the loss to call backward on (its gradient is this share's times the
    number of processes, because their average is then the whole batch's), the loss to report and the terms, of the whole batch.
    """
    if alone():
        return loss, loss, terms
    names = [name for name in terms if name != "routing"]
    numbers = [loss, *(terms[name] for name in names)]
    both = torch.stack([torch.as_tensor(x, dtype=torch.float64, device=loss.device) for x in (count, in_S)]) * weight     # (2,)
    means, shares = (torch.stack([torch.as_tensor(x, device=loss.device).detach().double() for x in xs]) if xs else both.new_zeros(0)
                     for xs in (numbers, terms.get("routing", [])))                                       # (numbers,), (n,)
    sums = torch.cat([both, means * both[0], shares * both[1]])
    dist.all_reduce(sums)
    total, total_S = sums[:2].clamp(min=1)
    means, shares = (sums[2:2 + len(means)] / total).float(), (sums[2 + len(means):] / total_S).float()
    report = dict(zip(names, means[1:])) | ({"routing": list(shares)} if "routing" in terms else {})
    return loss * (both[0] * dist.get_world_size() / total).float(), means[0], report


# --- states and results -------------------------------------------------------------------------------------------------------------------


def gathered(x):
    """A tensor that is divided among the processes, whole, on the CPU of process 0; anything else as it is."""
    if not hasattr(x, "full_tensor"):
        return x
    x = x.full_tensor()
    return x.cpu() if first() else None


def divided(x, like):
    """x divided as `like` is, if it is."""
    if not hasattr(like, "full_tensor") or not x.dim():
        return x
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)  # everybody has the whole x


def whole(router):
    """The trained Router in one piece. All processes must call this; process 0 gets it, the others one without numbers."""
    if alone():
        return router
    state = {name.replace("lm.module.", "lm."): gathered(p) for name, p in router.state_dict().items()}
    with torch.device("meta"):
        lm = getattr(router.lm, "module", router.lm)
        one = Router(GPT(lm.config), router.W.out_features)
    if first():
        one.load_state_dict(state, assign=True)
        if one.lm.config.tied:
            one.lm.head.weight = one.lm.embed.weight
    return one


def save_state(path, recipe, step, router, optimizer, log):
    """Everything that a killed training needs to resume as if nothing had happened. path None: nothing is saved."""
    if path is None:
        return
    model, moments = whole(router), optimizer.state_dict()
    moments["state"] = {i: {name: gathered(x) for name, x in state.items()} for i, state in moments["state"].items()}
    if first():
        content = {"recipe": recipe, "step": step, "model": model.state_dict(), "optimizer": moments, "log": list(log)}
        write(path, lambda f: torch.save(content, f))


def resume(path, recipe, router, optimizer):
    """Load a state into router and optimizer, if there is one; returns (the step to resume from, the log so far)."""
    if path is None or not path.exists():
        return 0, []
    state = load(path, ("recipe", "step", "model", "optimizer", "log"), "start again")
    check_same(path, state["recipe"], recipe)
    try:
        router.load_state_dict({name: divided(state["model"][name.replace("lm.module.", "lm.")], p)
                                for name, p in router.state_dict().items()})
        params, moments = [p for group in optimizer.param_groups for p in group["params"]], state["optimizer"]
        moments["state"] = {i: {name: divided(x, params[i]) for name, x in of.items()} for i, of in moments["state"].items()}
        optimizer.load_state_dict(moments)
    except (RuntimeError, ValueError, KeyError, IndexError) as e:
        raise UserError(f"{path} does not fit this training; remove it to start again") from e
    print(f"resuming from step {state['step']} of {path}")
    return state["step"], state["log"]


# --- one process after the other, and the end ---------------------------------------------------------------------------------------------


def release():
    """Process 0 lets the others begin."""
    if store and first():
        store.set("go", "")


def turns(items):
    """This process's part of what each can do by itself, at the same time; `wait` for the others after it."""
    release()
    return items if alone() else items[dist.get_rank()::dist.get_world_size()]


def wait():
    """Until all processes are here, however long the slowest takes."""
    if not alone():
        size, come = dist.get_world_size(), store.add("come", 1)
        if come % size == 0:
            store.set(f"all {come}", "")
        store.wait([f"all {-(-come // size) * size}"], FOREVER)


def run(main):
    """toy_experts.run.run, and under torchrun the same in every process."""
    script.run(partial(together, main) if torchrun() else main)


def together(main):
    """main() in turn in each process of a new group. An error comes out once."""
    global store, voice
    store, rank, size = next(rendezvous("env://"))
    voice = store.clone()
    threading.Thread(target=last_words, daemon=True, args=[wake_on_signals()]).start()
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)  # what "cuda" means from here on
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=rank, world_size=size,
                                timeout=timedelta(hours=1))
        in_turn(main)
        dist.destroy_process_group()
    except (UserError, OSError, KeyboardInterrupt) as e:
        if speak():
            print(file=sys.stderr)  # the last line may be another process's, a progress bar without its end
            raise
        sys.exit(130 if isinstance(e, KeyboardInterrupt) else 2)
    except RuntimeError as e:
        if not isinstance(e, dist.DistError) and "gloo" not in str(e):
            raise  # a mistake of ours
        if speak():
            print(file=sys.stderr)
            raise UserError(GONE) from e
        sys.exit(2)


def in_turn(main):
    """main() first in process 0; in the others, without a word of theirs, as soon as it calls `release` or is done."""
    with ExitStack() as quiet, suppress(SystemExit):  # --help exits
        if not first():
            nowhere = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(redirect_stdout(nowhere))
            quiet.enter_context(redirect_stderr(nowhere))
            store.wait(["go"], FOREVER)
        main()
    release()
    wait()


def speak():
    """True for the first process that asks: it is the one to tell what went wrong."""
    try:
        return voice.add("said", 1) == 1
    except RuntimeError:  # the store has gone too
        return True


def wake_on_signals():
    """The socket that gets a byte for every signal. (A handler of Python's would wait for the end of a collective, perhaps for ever.)"""
    read, write = socket.socketpair()
    write.setblocking(False)
    signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return read, write


def last_words(sockets):
    """torchrun ends us, mostly because another process has failed."""
    while sockets[0].recv(1)[0] != signal.SIGTERM:
        pass
    time.sleep(1)  # whoever is about to say it better, and to end by itself, does
    if speak():
        print(f"\nerror: {GONE}\n", end="", file=sys.__stderr__, flush=True)  # in one piece
    os._exit(143)
