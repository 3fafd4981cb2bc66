"""TRL's SFTTrainer as the recipes' Trainer: loss per token, exact match, LoRA+ and merged adapters."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import regex  # it has re's syntax, and a time limit
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm
from trl import SFTConfig, SFTTrainer
from trl.models.utils import unwrap_model_for_generation

from adamnx_hf.tasks.base import make_field
from adamnx_hf.tasks.trainer import RecipeTrainer, RecipeTrainingArguments

__all__ = ["ExactMatch", "RecipeSFTConfig", "RecipeSFTTrainer", "normalize_answer"]

#: The folder in output_dir of the model with its adapter merged into the weights.
MERGED = "merged"


@dataclasses.dataclass
class RecipeSFTConfig(RecipeTrainingArguments, SFTConfig):
    """TRL's SFTConfig with the fields that a recipe adds.

    SFTConfig has other defaults than TrainingArguments for bf16, gradient checkpointing and the learning
    rate. Here TrainingArguments' defaults hold, so that a field that no recipe names has the value in
    Transformers' documentation.
    """

    dataset_text_field: str = make_field(
        "text", "Column of texts, where neither templates nor chats are given.", data=True
    )
    loraplus_lr_ratio: float | None = make_field(
        None, "LoRA+: the learning rate of LoRA's B matrices over that of its A matrices, at least 1."
    )
    merge_adapter: bool = make_field(
        True, f"After training also save the model with its adapter merged, in output_dir/{MERGED}."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loraplus_lr_ratio is not None and not self.loraplus_lr_ratio >= 1:
            raise ValueError(f"loraplus_lr_ratio: {self.loraplus_lr_ratio} is below 1")


def normalize_answer(text: str) -> str:
    """Normalizes an answer: removes commas, dollar signs, spaces and a last `.` or `.0`, and folds case."""
    return re.sub(r"\.0*$", "", re.sub(r"[,$\s]", "", text)).casefold()


#: The most seconds that the search for an answer in one text may take.
SECONDS = 1.0


@dataclasses.dataclass
class ExactMatch:
    """The check that greedy generation gives the reference's answer.

    Raises:
        ValueError: the pattern is no regular expression, or has no group.
    """

    pattern: str
    """The regular expression whose first match counts. The first group is the answer."""
    samples: int
    """The number of examples to check: the first ones of the evaluation split."""
    max_new_tokens: int

    def __post_init__(self) -> None:
        shown = f"answer_pattern: {self.pattern[:200]!r}"
        try:
            groups = re.compile(self.pattern).groups
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{shown} ({error})") from error
        if re.search(r"\(\?\w*x", self.pattern):
            # The flag allows spaces and comments, which hide counts from the check below.
            raise ValueError(f"{shown} has the flag x; write it without")
        if not groups:
            raise ValueError(f"{shown} has no group; put the answer in parentheses")
        counts = [int(number) for number in re.findall(r"(?<=[{,])\d+(?=[,}])", self.pattern)]
        if math.prod(max(count, 1) for count in counts) > 100_000:  # regex writes repeats out in memory
            raise ValueError(f"{shown} repeats too often; use * or + in place of large counts")
        try:
            self._compiled = regex.compile(self.pattern)
        except (regex.error, MemoryError, RecursionError) as error:
            raise ValueError(f"{shown} ({error})") from error

    def find_answer(self, text: str) -> str | None:
        """Finds the answer in `text`; returns None if there is none.

        Raises:
            TimeoutError: the search takes longer than :data:`SECONDS`.
        """
        found = self._compiled.search(text, timeout=SECONDS)
        return normalize_answer(found.group(1)) if found and found.group(1) is not None else None


class RecipeSFTTrainer(RecipeTrainer, SFTTrainer):
    """SFTTrainer that evaluates per token, generates for exact match, and knows LoRA+.

    `eval_loss` is the mean over all evaluated tokens; Transformers has the mean of the batches' means.
    `eval_perplexity` is the exponential of that loss. With several processes the rows that fill up the last
    batch count twice. Tokens beyond `max_length` do not count for either; `truncated` counts the examples
    that have such tokens. Exact match is over the first examples of the split before they are cut: one whose
    prompt fills `max_length` counts as not matched.

    Args:
        exact_match: the check of generated answers. It needs an evaluation split of prompts and completions
            that is not packed. None: nothing is generated.
        kwargs: further arguments of SFTTrainer.
    """

    args: RecipeSFTConfig

    # The loss summed over the tokens of an evaluation, and their number.
    _eval_loss = _eval_tokens = 0.0

    def __init__(self, *, exact_match: ExactMatch | None = None, **kwargs: Any) -> None:
        self.exact_match = exact_match
        self.asked: Any = None
        """The examples that exact match checks, tokenized, before any is cut or left out."""
        self.truncated: dict[str, dict[str, int]] = {}
        """Counts for the splits "train" and "eval": `examples` before `max_length` was applied, those
        `dropped` because none of their tokens that count for the loss fits, and those `shortened`, which lost
        some such tokens."""
        super().__init__(**kwargs)
        self.dropped = {f"{split}_split": counts["dropped"] for split, counts in self.truncated.items()}

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        """Prepares a split in two steps, and counts in between the examples that `max_length` cuts.

        An example without a token that counts for the loss is left out, also where examples are packed.
        """
        prepare = super()._prepare_dataset
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset, whole.use_liger_kernel = None, False, False
        data = prepare(dataset, processing_class, whole, False, formatting_func, dataset_name)
        if dataset_name == "eval" and self.exact_match is not None and self.asked is None:
            self.asked = data.select(range(min(self.exact_match.samples, len(data))))
        cut = _find_kept_part(args)
        if packing:  # only the strategy bfd cuts; the others go on in another sequence
            cut = slice(args.max_length if args.packing_strategy == "bfd" else None)
        kept, shortened = [], 0
        for row, labels in enumerate(data["labels"]):
            left = _count_labels(labels[cut])
            if left:
                kept.append(row)
                shortened += left < _count_labels(labels)
        counts = {"examples": len(data), "dropped": len(data) - len(kept), "shortened": shortened}
        self.truncated.setdefault(dataset_name, counts)
        data = data.select(kept)
        return prepare(data, processing_class, args, packing, None, dataset_name) if kept else data

    def find_fitting(self, rows: Iterable[int]) -> list[Any]:
        """Finds those `rows` of :attr:`asked`, cut to `max_length`, whose prompts leave room to answer."""
        cut = _find_kept_part(self.args)
        asked = (self.asked[i] for i in rows)
        left = [row | {key: row[key][cut] for key in ("input_ids", "labels")} for row in asked]
        # A row starts with its prompt, whose labels are -100.
        return [row for row in left if row["labels"][:1] == [-100] and _count_labels(row["labels"])]

    def read_reference(self, row: Any) -> str:
        """Reads the completion in a row of :attr:`asked`, without the end token that TRL appends."""
        completion = row["completion"]
        if isinstance(completion, str):
            return completion.removesuffix(self.processing_class.eos_token)
        return "\n".join(message["content"] for message in completion)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Creates the optimizer; `loraplus_lr_ratio` asks for PEFT's groups for LoRA+ (arXiv:2402.12354)."""
        if self.optimizer is None and self.args.loraplus_lr_ratio is not None:
            from peft.optimizers import create_loraplus_optimizer

            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = create_loraplus_optimizer(
                self.model,
                optimizer,
                loraplus_lr_ratio=self.args.loraplus_lr_ratio,
                loraplus_weight_decay=self.args.weight_decay,
                **options,
            )
        return super().create_optimizer(*args, **kwargs)

    def count_units(self, inputs: Any) -> int:
        """Counts the tokens of a batch, without padding."""
        mask = inputs.get("attention_mask")
        return int(inputs["input_ids"].numel() if mask is None else mask.sum())

    def count_units_per_example(self) -> float:
        """Counts the tokens of a training sequence on average."""
        return statistics.fmean(map(len, self.train_dataset["input_ids"]))

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Makes SFTTrainer's step, and counts the tokens that the loss is the mean of."""
        count = (inputs["labels"][:, 1:] != -100).sum()  # nothing predicts the first token of a sequence
        result = super().prediction_step(model, inputs, *args, **kwargs)
        if result[0] is not None and count:
            self._eval_loss += float(result[0]) * int(count)
            self._eval_tokens += int(count)
        return result

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluates, and adds the loss per token, perplexity and exact match to the metrics."""
        self._eval_loss = self._eval_tokens = 0.0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        total, tokens = self._eval_loss, self._eval_tokens
        if self.args.world_size > 1:
            sums = torch.tensor([total, tokens], device=self.args.device, dtype=torch.float64)
            total, tokens = self.accelerator.reduce(sums).tolist()
        metrics: Any = output.metrics
        if tokens:
            loss = total / tokens
            metrics[f"{metric_key_prefix}_loss"] = loss
            metrics[f"{metric_key_prefix}_perplexity"] = math.exp(min(loss, 700.0))
        if self.exact_match is not None:
            metrics[f"{metric_key_prefix}_exact_match"] = self._measure_exact_match(self.exact_match)
        return output

    def _measure_exact_match(self, exact_match: ExactMatch) -> float:
        """Measures the percentage of examples whose generated answer is the reference's."""
        mine = range(self.accelerator.process_index, len(self.asked), self.accelerator.num_processes)
        rows = self.find_fitting(mine)
        right = [False] * (len(mine) - len(rows))
        size = self.args.per_device_eval_batch_size
        bar = tqdm(
            total=len(rows),
            desc="generating",
            unit=" answers",
            leave=False,
            disable=self.args.quiet,
        )
        try:
            with bar, unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
                model.eval()
                for start in range(0, len(rows), size):
                    batch = rows[start : start + size]
                    texts = self.generate(model, batch, exact_match.max_new_tokens)
                    for row, text in zip(batch, texts, strict=True):
                        expected = exact_match.find_answer(self.read_reference(row))
                        try:
                            right.append(expected is not None and exact_match.find_answer(text) == expected)
                        except TimeoutError:  # the pattern gets lost in the text: there is no answer
                            right.append(False)
                    bar.update(len(batch))
        finally:
            if self.args.gradient_checkpointing:
                # TRL has turned checkpointing off, and perhaps on again, without the options.
                trained = self.accelerator.unwrap_model(self.model)
                trained.gradient_checkpointing_enable(self.args.gradient_checkpointing_kwargs)
        everyone = gather_object(right) if self.accelerator.num_processes > 1 else right
        return 100 * sum(everyone) / len(everyone)

    @torch.no_grad()
    def generate(self, model: Any, rows: list[Any], max_new_tokens: int) -> list[str]:
        """Generates texts greedily from the prompts of tokenized `rows`: one batch, padded on the left."""
        tokenizer = self.processing_class
        lengths = [next(i for i, label in enumerate(row["labels"]) if label != -100) for row in rows]
        prompts = [row["input_ids"][:length] for row, length in zip(rows, lengths, strict=True)]
        padded = tokenizer.pad(
            {"input_ids": prompts}, padding=True, padding_side="left", return_tensors="pt"
        ).to(self.args.device)
        with self.compute_loss_context_manager():
            ids: Tensor = model.generate(
                **padded,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,  # greedy, whatever the model's own generation_config says
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,  # completions are trained to end in this token
            )
        width = padded["input_ids"].shape[1]
        texts: list[str] = tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
        return texts

    def select_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the logits of the tokens that count for the loss, (count, vocabulary) float32."""
        return logits[:, :-1][labels[:, 1:] != -100].float()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model or its adapter; at the end of a run also the model with the adapter merged."""
        super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or self.args.output_dir or ".")
        if not _internal_call and self.args.merge_adapter and (folder / "adapter_config.json").exists():
            if self.is_world_process_zero():
                try:
                    self._save_merged(folder)
                except (
                    OSError,
                    RuntimeError,
                    ValueError,
                ) as error:  # no room or no Hub: the adapter is saved
                    reason = " ".join(str(error).split())[:200]
                    self.notes.append(
                        f"the adapter is saved, but not merged ({reason}); later: PEFT's merge_and_unload"
                    )
            self.accelerator.wait_for_everyone()

    def _save_merged(self, folder: Path) -> None:
        """Merges the adapter into weights that are read anew, because those in training may be quantized."""
        from peft import AutoPeftModelForCausalLM

        model = self.accelerator.unwrap_model(self.model)
        base = model.get_base_model()
        dtype = torch.bfloat16 if getattr(base, "is_quantized", False) else base.dtype
        adapted = AutoPeftModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, trust_remote_code=self.args.trust_remote_code
        )
        merged = adapted.merge_and_unload()
        merged.save_pretrained(str(folder / MERGED))
        self.processing_class.save_pretrained(str(folder / MERGED))


def _find_kept_part(args: Any) -> slice:
    """Finds the part of an example that TRL keeps where examples are not packed."""
    if args.max_length is None:
        return slice(None)
    return slice(-args.max_length, None) if args.truncation_mode == "keep_end" else slice(args.max_length)


def _count_labels(labels: list[int]) -> int:
    """Counts the labels that count for the loss."""
    return len(labels) - labels.count(-100)
