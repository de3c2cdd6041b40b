"""The trainer: one loop for every arm. It knows batches, a model and a loss; no latent and no plugin.

for step: batch ─ micro-batches ─ model ─ loss ─ backward … ─ clip ─ AdamW
          every so often: log, evaluate on fixed windows, checkpoint
"""

from __future__ import annotations

import math
import shlex
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from lvlm.assemble import assemble
from lvlm.data import Source
from lvlm.errors import Interrupted, NotFinite, UserError
from lvlm.estimators import make_estimators
from lvlm.evaluation import estimate
from lvlm.interfaces import Batch
from lvlm.objective import per_token
from lvlm.runs import (
    claim,
    is_run,
    parameters_record,
    read_record,
    read_run,
    refuse_other_data,
    update_record,
    write_run,
)
from lvlm.training.checkpoint import Checkpoint, Checkpoints, load_trainer_state, load_weights
from lvlm.training.console import Display, describe
from lvlm.training.device import PeakMemory, keep_freed_memory, pick_autocast, pick_device, threads_restored
from lvlm.training.metrics import Metrics
from lvlm.training.optim import learning_rate, make_optimiser, set_learning_rate

if TYPE_CHECKING:
    from lvlm.recipe import Resolved


@threads_restored()
def train(
    resolved: Resolved,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    label: str | None = None,
) -> Path:
    """Train a recipe into a run folder; see `lvlm.runs` for what it holds.

    Args:
        resolved: the recipe.
        out: the run's folder.
        resume: go on from the newest checkpoint, exactly as if there had been no interruption.
        overwrite: delete a run that is there.
        console: where progress goes; quiet unless given.
        label: what stands in front of each line; the recipe's name and seed unless given.

    Raises:
        UserError: the folder is taken, the data can't be read, the loss isn't finite, the disk is full, torch
            can't compile what it was told to.
        Interrupted: by Ctrl-C or SIGTERM, after saving.
    """
    console = console or Console(quiet=True)
    label = label or f"{resolved.recipe.name} seed {resolved.recipe.seed}"
    resuming = resume and is_run(out)
    if resuming:
        _refuse_changes(resolved, out)
    else:
        claim(out, overwrite=overwrite)
    trainer = Trainer(resolved, out)
    if resuming:
        trainer.restore()
        if trainer.step >= trainer.spec.steps:
            console.print(f"{label}  finished already ({trainer.step} steps)", highlight=False, markup=False)
            return out
        for stale in ("evaluation.json", "evaluation.npz"):
            (out / stale).unlink(missing_ok=True)
    else:
        write_run(out, resolved, trainer.facts())
    try:
        trainer.run(console, label)
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: could not be written: {error.strerror or error}"
        ) from error
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{out}: train.compile: torch can't compile here ({reason}); train with train.compile=false"
        ) from error
    return out


NOISE_STREAM = 0x5DEECE66D


class Trainer:
    """A model, its optimiser and its data at some step."""

    def __init__(self, resolved: Resolved, out: Path) -> None:
        recipe = resolved.recipe
        self.recipe, self.spec, self.out = recipe, recipe.train, out
        self.plugin_files = resolved.registry.files()
        if self.spec.threads:
            torch.set_num_threads(self.spec.threads)
        self.device = pick_device(self.spec.device)
        keep_freed_memory(self.device)
        self.precision, self.autocast = pick_autocast(self.spec.precision, self.device)
        self.data: Source = recipe.data.open()
        self.windows = self.data.windows(self.spec.evaluate_windows)
        self.data.windows(
            recipe.evaluate.windows, split="test"
        )  # too few are told now, not after the training
        self.model = assemble(recipe).to(self.device)
        if self.spec.compile:
            for block in self.model.backbone.blocks:
                block.compile()
        self.loss = recipe.loss.build().to(self.device)
        self.optimiser = make_optimiser(self.model, self.loss, self.spec)
        self.checkpoints = Checkpoints(out, keep=self.spec.keep_checkpoints)
        self.step = 0  # optimiser steps done
        torch.manual_seed(recipe.seed + NOISE_STREAM)  # codes and dropout; no seed's weights share the stream

    def facts(self) -> dict[str, Any]:
        """What run.json says of the run beside its recipe."""
        return {
            "data_fingerprint": self.data.fingerprint,
            "selection_windows": self.windows.digest,
            "parameters": parameters_record(self.model),
            "device": str(self.device),
            "precision": self.precision,
        }

    def restore(self) -> None:
        """Take up the newest checkpoint, or start from step 0 where there is none yet.

        Raises:
            UserError: a damaged checkpoint, or data or a kind of device that changed since.
        """
        refuse_other_data(self.out, self.data.fingerprint)
        began_on = str(read_record(self.out).get("device")).split(":")[0]
        if began_on != self.device.type:  # 'auto' on another machine
            raise UserError(
                f"{self.out}: can't resume exactly: it began on {began_on!r}, and here it would go on on "
                f"{self.device.type!r}; resume it where it began, or train it anew into another folder"
            )
        if not self.checkpoints.list():
            return
        checkpoint = self.checkpoints.newest()
        load_weights(self.model, checkpoint)
        state = load_trainer_state(checkpoint)
        try:
            self.optimiser.load_state_dict(state["optimiser"])
            self.loss.load_state_dict(state["loss"])
            torch.set_rng_state(state["cpu_random"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(state["device_random"], self.device)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            path = checkpoint.folder / "trainer.pt"
            raise UserError(f"{path}: not the trainer state of the run's recipe: {error!r}") from None
        self.step = checkpoint.step

    def save(self, bound: tuple[str, float] | None) -> Checkpoint:
        """Write a checkpoint of the present step, selected by `bound`."""
        state: dict[str, Any] = {
            "optimiser": self.optimiser.state_dict(),
            "loss": self.loss.state_dict(),
            "cpu_random": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["device_random"] = torch.cuda.get_rng_state(self.device)
        name, value = bound or ("none", None)
        return self.checkpoints.save(self.model, state, step=self.step, bound_name=name, bound=value)

    def run(self, console: Console, label: str) -> None:
        """Train to the last step."""
        spec = self.spec
        metrics = Metrics(self.out, after_step=self.step)
        peak = PeakMemory(self.device)
        speeds: list[float] = []
        try:
            with stop_signals() as stop, Display(console, label, spec.steps, self.step) as display:
                self.model.train()
                while self.step < spec.steps:
                    began = time.perf_counter()
                    numbers, tokens = self._train_step()
                    self.step += 1
                    numbers["tokens_per_second"] = tokens / (time.perf_counter() - began)
                    speeds.append(numbers["tokens_per_second"])
                    last = self.step == spec.steps
                    if last or self.step % spec.log_every == 0:
                        metrics.log("train", self.step, numbers)
                    display.update(self.step, numbers)
                    bound = None
                    if last or self.step % spec.evaluate_every == 0:
                        evaluation, bound = self._evaluate()
                        metrics.log("evaluate", self.step, evaluation)
                        display.line(f"step {self.step}/{spec.steps}  validation {describe(evaluation)}")
                    stopping = bool(stop)  # looked at once: a signal after this line waits for the next step
                    due = spec.checkpoint_every and self.step % spec.checkpoint_every == 0
                    if stopping or bound or due:  # an evaluated step may turn out to be the best
                        self.save(bound)
                    if stopping and not last:
                        raise Interrupted(
                            stop[0], f"stopped and saved at step {self.step}; {self._how_to_resume()}"
                        )
        finally:
            metrics.close()
        update_record(
            self.out,
            finished_step=self.step,
            tokens_per_second=statistics.median(speeds),
            peak_memory_mib=peak.mib(),
        )
        if stop:  # what would come after this run shall not begin
            raise Interrupted(stop[0], f"stopped; {self.out} had just finished")

    def _train_step(self) -> tuple[dict[str, float], int]:
        """One optimiser step: what is logged (nats per token), and the tokens that it read."""
        spec, step = self.spec, self.step
        batch = self.data.train_batch(seed=self.recipe.seed, step=step, rows=spec.rows)
        num_tokens = batch.num_targets
        rate = learning_rate(step, spec)
        set_learning_rate(self.optimiser, rate)
        self.model.at_step(step)
        sums: dict[str, torch.Tensor] = {}
        total = torch.zeros((), device=self.device)
        where = f"step {step + 1} (batch: data seed {self.recipe.seed}, step {step}, {spec.rows} rows)"
        for micro in self._micro_batches(batch):
            try:
                with self.autocast():
                    output = self.model(micro.inputs_BT, micro.keep_BT, z=self.spec.codes)
                    terms = self.loss(output, micro, num_tokens=num_tokens, step=step)
            except NotFinite as error:
                raise UserError(self._diverged(f"{where}: {error}", {})) from None
            terms.loss.backward()
            total += terms.loss.detach()
            for name, value in terms.sums.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, spec.clip_norm or float("inf"))
        numbers = per_token({k: float(v) for k, v in sums.items()}, num_tokens)
        numbers = {"loss": float(total), **numbers, "learning_rate": rate, "gradient_norm": float(norm)}
        if not (total.isfinite() and norm.isfinite()):
            raise UserError(self._diverged(f"{where}: the loss or its gradient is not finite", numbers))
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.loss.after_step()
        return numbers, batch.inputs_BT.numel()

    def _micro_batches(self, batch: Batch) -> Iterator[Batch]:
        rows = self.spec.micro_rows or len(batch)
        for start in range(0, len(batch), rows):
            yield batch[start : start + rows].to(self.device)

    def _evaluate(self) -> tuple[dict[str, float], tuple[str, float]]:
        """Numbers on the fixed validation windows (nats per token), and the bound to select by."""
        try:
            estimates = estimate(
                self.model,
                self.windows.batch,
                make_estimators(["elbo"], [1], has_latent=self.model.latent is not None),
                rows=self.recipe.evaluate.rows,
                seed=self.recipe.evaluate.seed,
                autocast=self.autocast,
            )
        except NotFinite as error:
            raise UserError(self._diverged(f"the validation after step {self.step}: {error}", {})) from None
        numbers = {name: estimates.nats_per_token(name) for name in estimates.nats}
        name = "elbo" if "elbo" in numbers else "nll_exact"
        if not math.isfinite(numbers[name]):
            raise UserError(self._diverged("the validation loss is not finite", numbers))
        return numbers, (name, numbers[name])

    def _how_to_resume(self) -> str:
        files = [word for file in self.plugin_files for word in ("--plugin", file)]
        return "go on with: " + shlex.join(["lvlm", "train", "--resume", "--out", str(self.out), *files])

    def _diverged(self, what: str, numbers: dict[str, float]) -> str:
        kept = self.checkpoints.list()
        last = f"the last good checkpoint is {kept[-1].folder}" if kept else "there is no checkpoint yet"
        shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        shown = f" ({shown})" if shown else ""
        return (
            f"{self.out}: {what}{shown}; {last}; "
            "a lower train.learning_rate, a longer train.warmup_steps or a smaller train.clip_norm may help"
        )


def _refuse_changes(resolved: Resolved, out: Path) -> None:
    """A resumed run must be the run that was begun."""
    before = {path: value for path, value, _ in read_run(out, registry=resolved.registry).describe()}
    now = {path: value for path, value, _ in resolved.describe()}
    changed = sorted(
        k for k in before.keys() | now.keys() if before.get(k) != now.get(k) and k[:7] != "plugins"
    )
    if changed:
        lines = [f"  {k}: {before.get(k)!r} in the run, {now.get(k)!r} now" for k in changed]
        raise UserError(
            f"{out}: can't resume, the recipe differs from the run's:\n"
            + "\n".join(lines)
            + "\nresume without the change, or train it into another folder"
        )


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives the first SIGINT or SIGTERM; a second one acts as always."""
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        for sent in (signal.SIGINT, signal.SIGTERM):
            before[sent] = signal.signal(sent, note)
    except ValueError:  # not the main thread: nobody can be interrupted here
        pass
    try:
        yield received
    finally:
        for sent, handler in before.items():
            signal.signal(sent, handler)
