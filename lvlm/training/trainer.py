"""The trainer: one loop for every model, in one process or many. It knows no latent and no plugin.

for step: batch ─ micro-batches ─ model ─ loss ─ backward … ─ clip ─ AdamW
          every so often: log, evaluate on fixed windows, checkpoint

A step is a function of the weights, the seed and its number: batches are, and so is the noise of each row.
So a run that was stopped, or that goes on with another number of processes or other `micro_rows`, is the same
run.
"""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn

from lvlm.data import Source, open_reader
from lvlm.errors import Diverged, Interrupted, NotFinite, UserError
from lvlm.interfaces import Batch, RowGenerator
from lvlm.model.noise import noise_seed
from lvlm.objective import per_token
from lvlm.recipe.assemble import assemble, build_loss, count_parameters
from lvlm.runs.checkpoint import Checkpoints, load_trainer_state
from lvlm.runs.divergence import Divergence, note_divergence
from lvlm.runs.folder import parameters_record, read_record, refuse_other_data, update_record
from lvlm.runs.manifest import Checkpoint
from lvlm.runs.weights import load_optimiser, load_weights, tensors_of
from lvlm.system.device import PeakMemory, keep_freed_memory, peak_tflops, pick_autocast, pick_device
from lvlm.system.progress import Display, describe
from lvlm.system.terminal import tell
from lvlm.system.world import World, led
from lvlm.training.lost import refuse_lost_checkpoints
from lvlm.training.metrics import Metrics, read_metrics
from lvlm.training.optim import learning_rate, make_optimiser, set_learning_rate
from lvlm.training.parallel import (
    gathered_seam,
    load_whole_state,
    make_mesh,
    shard,
    synchronise_gradients,
    whole_state,
)
from lvlm.training.recompute import keep_fewer_activations
from lvlm.training.room import refuse_step
from lvlm.training.signals import STOP_SIGNALS, stop_signals
from lvlm.training.spikes import Spikes
from lvlm.training.validation import Validated, Validation, onset
from lvlm.training.watch import Watch

if TYPE_CHECKING:
    from lvlm.recipe.recipe import Resolved


class Trainer:
    """State of a training at some step: model, loss, optimiser and data.

    Args:
        resolved: the recipe.
        out: the run's folder.
        world: the processes that train it together.
        watch: is told of progress.
    """

    def __init__(
        self, resolved: Resolved, out: Path, world: World | None = None, watch: Watch | None = None
    ) -> None:
        recipe = resolved.recipe
        self.recipe, self.spec, self.out = recipe, recipe.train, out
        self.world = world or World()
        self.watch = watch or Watch(World(), self.spec.timeout_seconds)
        self.plugin_files = resolved.registry.files()
        if self.spec.threads:
            torch.set_num_threads(self.spec.threads)
        self.device = pick_device(self.spec.device, self.world.local_rank)
        keep_freed_memory(self.device)
        self.precision, self.autocast = pick_autocast(self.spec.precision, self.device)
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.spec.tf32
        if self.spec.codes == "shuffled" and self.world.ranks > 1 and self.spec.rows // self.world.ranks % 2:
            raise UserError(
                f"train.codes: shuffled exchanges the codes of rows in pairs; make train.rows "
                f"{self.spec.rows} a multiple of {2 * self.world.ranks}, twice the number of processes"
            )
        self.data: Source = recipe.data.open()
        self.windows = self.data.windows(self.spec.evaluate_windows)
        self.validation = Validation(resolved, self.windows.batch)
        self.data.windows(
            recipe.evaluate.windows, split="test"
        )  # too few are told now, not after the training
        self.reader = open_reader(
            self.data,
            seed=recipe.seed,
            rows=self.spec.rows,
            rank=self.world.rank,
            ranks=self.world.ranks,
            workers=self.spec.workers,
            pin=self.device.type == "cuda",
            length=self.spec.length,
        )
        model = assemble(recipe)
        refuse_step(recipe, count_parameters(model).total, self.device, ranks=self.world.ranks)
        self.model = model.to(self.device)
        self.model.logits_chunk = self.spec.logits_chunk
        self.parameters_record = parameters_record(self.model)
        self.loss = build_loss(recipe).to(self.device)
        keep_fewer_activations(self.model, self.spec.recompute)
        if self.spec.compile:
            for block in self.model.backbone.blocks:
                block.compile()
        mesh = make_mesh(self.world.ranks, self.device.type, self.spec.shard_over)
        shard(
            self.model,
            self.loss,
            mesh,
            precision=self.precision,
            reshard_after_forward=self.spec.reshard_after_forward,
        )
        self.optimiser = make_optimiser(self.model, self.loss, self.spec)
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.checkpoints = Checkpoints(
            out, keep=self.spec.keep_checkpoints, world=self.world, select=self.spec.select
        )
        self.step = 0  # optimiser steps done
        self.passed_over = 0  # batches that a rewind left out
        self.spikes = Spikes(self.spec.spike_factor)

    def facts(self) -> dict[str, Any]:
        """Facts that run.json holds beside the recipe."""
        return {
            "data_fingerprint": self.data.fingerprint,
            "selection_windows": self.windows.digest,
            "parameters": self.parameters_record,
            "device": self.device.type,
            "precision": self.precision,
            "processes": self.world.ranks,
        }

    # ---------------------------------------------------------------------------------------- checkpoints

    def restore(self, tell: Callable[[str], object] = str) -> None:
        """Restore the newest whole checkpoint, or start from step 0 where there is none yet.

        Args:
            tell: called with a line for each checkpoint that is passed over.

        Raises:
            UserError: no checkpoint is whole, or those that were saved aren't there, or data or the kind of
                device changed since.
        """
        refuse_other_data(self.out, self.data.fingerprint)
        began_on = str(read_record(self.out).get("device")).split(":")[0]
        if began_on != self.device.type:  # 'auto' on another machine
            raise UserError(
                f"{self.out}: can't resume exactly: it began on {began_on!r}, and here it would go on on "
                f"{self.device.type!r}; resume it where it began, or train it anew into another folder"
            )
        checkpoint = led(self.world, lambda: self._newest(tell))
        if checkpoint is None:
            return
        load_weights(self.model, checkpoint, self.world)
        load_optimiser(self.optimiser, self.model, checkpoint, self.world)
        state = load_trainer_state(checkpoint)
        try:
            load_whole_state(self.loss, state["loss"])
            if self.precision == "fp16":
                self.scaler.load_state_dict(state["scaler"])
            self.passed_over = int(state["passed_over"])
            self.spikes.load_state_dict(state)
            readers = state["readers"]
            # A reader without a position of its own asks nothing of the one before it.
            self.reader.load_state_dict(readers[self.world.rank % len(readers)])
        except UserError:
            raise
        except (KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            path = checkpoint.folder / "trainer.pt"
            raise UserError(f"{path}: not the trainer state of the run's recipe: {error!r}") from None
        self.step = checkpoint.step

    def _newest(self, tell: Callable[[str], object]) -> Checkpoint | None:
        checkpoint = self.checkpoints.newest_whole(tell)
        if checkpoint is None:
            refuse_lost_checkpoints(self.out, self.spec)
        return checkpoint

    def save(self, validated: Validated | None, *, wait: bool = True) -> None:
        """Write a checkpoint of the present step.

        Args:
            validated: with the bound that a checkpoint may be chosen by; None for no evaluation.
            wait: whether to wait until it is written; else it is written behind the loop.
        """
        state: dict[str, Any] = {
            "loss": whole_state(self.loss),
            "scaler": self.scaler.state_dict(),
            "passed_over": self.passed_over,
            **self.spikes.state_dict(),
            "readers": self.world.gathered(self.reader.state_dict()),
        }
        name, bound = ("none", None) if validated is None else (validated.bound_name, validated.bound)
        tensors = tensors_of(self.model, self.optimiser)
        self.checkpoints.save(tensors, state, step=self.step, bound_name=name, bound=bound, wait=wait)

    # ----------------------------------------------------------------------------------------------- loop

    def run(self, console: Console, label: str) -> None:
        """Train to the last step."""
        spec = self.spec
        metrics = self._metrics()
        peak = PeakMemory(self.device)
        speeds: list[float] = []
        try:
            with stop_signals() as stop, Display(console, label, spec.steps, self.step) as display:
                self.model.train()
                while self.step < spec.steps:
                    began = time.perf_counter()
                    numbers, tokens, stopping = self._train_step(stop)
                    if numbers.pop("rewound", None):
                        display.line(f"a spike: back to step {self.step}; {self.spikes.count} so far")
                        if metrics:
                            metrics.close()
                            metrics = self._metrics()
                        continue
                    self.step += 1
                    self._note_save(metrics)
                    numbers["tokens_per_second"] = tokens / (time.perf_counter() - began)
                    speeds.append(numbers["tokens_per_second"])
                    last = self.step == spec.steps
                    if metrics and (last or self.step % spec.log_every == 0):
                        metrics.log("train", self.step, numbers | self._costs(numbers, peak))
                    display.update(self.step, numbers)
                    validated = None
                    if last or self.step % spec.evaluate_every == 0:
                        validated = self._evaluate()
                        if metrics:
                            metrics.log("evaluate", self.step, validated.numbers)
                        shown = describe(validated.numbers)
                        display.line(f"step {self.step}/{spec.steps}  validation {shown}")
                    due = spec.checkpoint_every and self.step % spec.checkpoint_every == 0
                    if stopping or validated or due:  # an evaluated step may be the one that is selected
                        self.save(validated, wait=bool(last or stopping))
                        self._note_save(metrics)
                    if stopping and not last:
                        message = f"stopped and saved at step {self.step}; {self._how_to_resume()}"
                        raise Interrupted(stopping, message if self.world.leads else "")
        finally:
            self.checkpoints.close()
            self.reader.close()
            self._note_save(metrics)
            if metrics:
                metrics.close()
        self.checkpoints.wait()
        if self.world.leads:
            reading = {} if not self.model.names else {"onset": onset(read_metrics(self.out))}
            update_record(
                self.out,
                finished_step=self.step,
                tokens_per_second=statistics.median(speeds),
                peak_memory_mib=peak.mib(),
                **reading,
            )
            if reading:
                step = reading["onset"]
                unread = "validation doesn't show that codes are read"
                shown = unread if step is None else f"codes are read from step {step} on"
                tell(console, f"{label}  {shown}")
        if stop:  # what would come after this run shall not begin
            raise Interrupted(stop[0], f"stopped; {self.out} had just finished" if self.world.leads else "")

    def _note_save(self, metrics: Metrics | None) -> None:
        """Record the newest save once it is on the disk, and only then take away what the run left behind by
        going on: lines of the log after its checkpoint, and an evaluation of before.
        """
        saved = self.checkpoints.saved
        if metrics is None or saved is None or saved == self._noted:
            return
        with suppress(OSError):  # a full disk is told by the next save
            update_record(self.out, saved_step=saved)
            metrics.settle()
            for stale in ("evaluation.json", "evaluation.npz"):
                (self.out / stale).unlink(missing_ok=True)
            self._noted = saved

    _noted: int | None = None

    def _metrics(self) -> Metrics | None:
        if not self.world.leads:
            return None
        config = self.recipe.model_dump(mode="json")
        return Metrics(self.out, after_step=self.step, services=self.spec.trackers, config=config)

    def _train_step(self, stop: list[int]) -> tuple[dict[str, float], int, int]:
        """Take one optimiser step.

        Returns:
            Numbers for the log (nats per token), the tokens that all processes read, and the signal upon
            which all of them stop, or 0.
        """
        spec, step = self.spec, self.step
        batch = self._batch()
        self.watch.moved(step)
        told = [int(sent in stop) for sent in STOP_SIGNALS]
        counts = torch.tensor([batch.num_targets, batch.inputs_BT.numel(), *told], device=self.device)
        num_tokens, tokens, *told = self.world.sum(counts).tolist()
        stopping = next((int(sent) for sent, heard in zip(STOP_SIGNALS, told, strict=True) if heard), 0)
        rate = learning_rate(step, spec)
        set_learning_rate(self.optimiser, rate)
        self.model.at_step(step)
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        for micro, noise, last in self._micro_batches(batch):
            with self.autocast():
                output = self.model(
                    **micro.read,
                    z=spec.codes,
                    generator=noise,
                    dropout_generator=noise,
                    log_ratios=self.loss.weighs_draws,
                )
                terms = self.loss(output, micro, num_tokens=num_tokens, step=step)
            synchronise_gradients(self.model, self.loss, last=last, shard_over=spec.shard_over)
            self.scaler.scale(terms.loss).backward()
            total += terms.loss.detach()
            for name, value in terms.sums.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        self.scaler.unscale_(self.optimiser)
        norm = _whole(nn.utils.clip_grad_norm_(self.parameters, spec.clip_norm or float("inf")))
        names = sorted(sums)
        packed = torch.stack([total.double(), *(sums[name].double() for name in names)])
        loss, *values = self.world.sum(packed).tolist()
        numbers = per_token(dict(zip(names, values, strict=True)), num_tokens)
        numbers = {"loss": loss, **numbers, "learning_rate": rate, "gradient_norm": float(norm)}
        if self.precision == "fp16":
            numbers["loss_scale"] = self.scaler.get_scale()
        if self.spikes.take(loss, float(norm), loss_scale=numbers.get("loss_scale")):
            numbers |= self._after_spike(numbers)
        else:
            self.scaler.step(self.optimiser)  # fp16: not where a gradient overflowed
        if "rewound" not in numbers:
            self.scaler.update()
            self.loss.after_step()
        self.optimiser.zero_grad(set_to_none=True)
        numbers["spikes"] = float(self.spikes.count)
        return numbers, tokens, stopping

    def _batch(self) -> Batch:
        """Rows of the step that this process trains on."""
        return self.reader.batch(self.step + self.passed_over)

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, RowGenerator, bool]]:
        """Micro-batches, their noise, and whether each is the last.

        Codes and dropout follow from the seed, the step and the row's place in the whole batch, whichever
        micro-batch and process has it. Of several draws of a row the first has the noise of a single one.
        """
        step = self.step + self.passed_over
        rows = self.spec.micro_rows or len(batch)
        first = self.world.rank * len(batch)
        for start in range(0, len(batch), rows):
            micro = batch[start : start + rows].to(self.device)
            places = range(first + start, first + start + len(micro))
            draws = range(self.spec.draws)
            seeds = [noise_seed(self.recipe.seed, step, place, draw) for place in places for draw in draws]
            torch.manual_seed(seeds[0])  # for what a part draws without the generator
            yield micro.repeated(len(draws)), RowGenerator(seeds, self.device), start + rows >= len(batch)

    # -------------------------------------------------------------------------------------------- spikes

    def _after_spike(self, numbers: dict[str, float]) -> dict[str, float]:
        """React to a spike as the recipe says: stop, skip the update, or go back to the newest checkpoint.

        Raises:
            Diverged: to stop.
        """
        spec, spikes, next_step = self.spec, self.spikes, self.step + 1
        if spec.on_spike == "stop" or spikes.too_many:
            batch = (
                f"(batch: data seed {self.recipe.seed}, step {self.step + self.passed_over}, "
                f"{spec.rows} rows)"
            )
            what = spikes.describe(numbers["loss"], numbers["gradient_norm"])
            raise self._diverged(next_step, what, numbers, at=f"step {next_step} {batch}: ")
        if spec.on_spike == "skip":
            return {}
        self.checkpoints.wait()
        behind, count, in_a_row = self.step + self.passed_over, spikes.count, spikes.in_a_row
        if not led(self.world, lambda: bool(self.checkpoints.list())):
            what = "a spike before the first checkpoint"
            raise self._diverged(next_step, what, numbers, at=f"step {next_step}: ")
        self.restore()
        spikes.count, spikes.in_a_row = count, in_a_row  # a rewind forgets steps, and no spikes
        self.passed_over = behind + 1 - self.step
        return {"rewound": 1.0}

    # ------------------------------------------------------------------------------------------ numbers

    def _evaluate(self) -> Validated:
        """Evaluate on the fixed validation windows.

        Every process computes all windows, so that the numbers are those of one process.

        Raises:
            Diverged: a number is not finite.
        """
        self.watch.moved(self.step)
        try:
            with gathered_seam(self.model):
                validated = self.validation(
                    self.model, autocast=self.autocast, progress=lambda _: self.watch.moved(self.step)
                )
        except NotFinite as error:
            raise self._diverged(self.step, f"the validation after step {self.step}: {error}", {}) from None
        if not validated.finite:
            raise self._diverged(self.step, "the validation loss is not finite", validated.numbers)
        return validated

    def _costs(self, numbers: dict[str, float], peak: PeakMemory) -> dict[str, float]:
        """Peak memory, and on known hardware the MFU.

        MFU is the share of the devices' peak that went into the model's own products (Chowdhery et al. 2022,
        PaLM, arXiv 2204.02311, appendix B).
        """
        costs: dict[str, float] = {}
        mib = peak.mib()
        if mib is not None:
            costs["peak_memory_mib"] = mib
        best = self.spec.peak_tflops or peak_tflops(self.device)
        if best is not None:
            if self._flops_per_token is None:
                from lvlm.training.flops import flops_per_token

                self._flops_per_token = flops_per_token(self.recipe)
            done = numbers["tokens_per_second"] * self._flops_per_token
            costs["mfu"] = done / (best * 1e12 * self.world.ranks)
        return costs

    _flops_per_token: float | None = None

    def _how_to_resume(self) -> str:
        files = [word for file in self.plugin_files for word in ("--plugin", file)]
        return "go on with: " + shlex.join(["lvlm", "train", "--resume", "--out", str(self.out), *files])

    def _diverged(self, step: int, what: str, numbers: dict[str, float], *, at: str = "") -> Diverged:
        """The error of a training that can't go on; run.json records it.

        Args:
            step: as for `Diverged`.
            what: the reason.
            numbers: to be shown, nats per token.
            at: where it happened, in front of the reason.
        """
        self.checkpoints.wait()
        kept = self.checkpoints.list()
        last = f"the last good checkpoint is {kept[-1].folder}" if kept else "there is no checkpoint yet"
        shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        shown = f" ({shown})" if shown else ""
        if self.world.leads:
            note_divergence(self.out, Divergence(step, what))
        return Diverged(
            step,
            what,
            f"{self.out}: {at}{what}{shown}; {last}; "
            "a lower train.learning_rate, a longer train.warmup_steps or a smaller train.clip_norm may help",
        )


def _whole(norm: Tensor) -> Tensor:
    """The norm over all processes."""
    from torch.distributed.tensor import DTensor

    return norm.full_tensor() if isinstance(norm, DTensor) else norm
