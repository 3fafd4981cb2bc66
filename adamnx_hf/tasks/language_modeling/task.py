"""Makes a recipe's SFTTrainer, with its model, its data and its metrics."""

from __future__ import annotations

import functools

from trl import get_peft_config

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.base import Recipe
from adamnx_hf.tasks.language_modeling import texts
from adamnx_hf.tasks.language_modeling.arguments import Arguments
from adamnx_hf.tasks.language_modeling.dataset import make_up, prepare_rows
from adamnx_hf.tasks.language_modeling.model import make_model, make_tokenizer
from adamnx_hf.tasks.language_modeling.toy import write_toy
from adamnx_hf.tasks.loading import load_data
from adamnx_hf.tasks.sft_trainer import SECONDS, RecipeSFTConfig, RecipeSFTTrainer

__all__ = ["make_trainer"]


def make_trainer(recipe: Recipe) -> RecipeSFTTrainer:
    """Makes TRL's SFTTrainer with the model, the data and the metrics of `recipe`."""
    arguments: Arguments = recipe.task_arguments
    args: RecipeSFTConfig = recipe.training_arguments
    _check_fields(arguments, args)
    splits, notes = load_data(recipe, functools.partial(make_up, args=args))
    with args.main_process_first(desc="preparing the rows"):
        (train, test), of_rows = prepare_rows(splits, arguments, args)
        notes += of_rows
        args.dataset_text_field = texts.TEXT
        if recipe.arguments.smoke:
            arguments.model_name_or_path = str(write_toy(arguments, args))
    tokenizer = make_tokenizer(arguments, args)
    model = make_model(arguments, args)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and (args.max_length or 0) > longest:
        raise RecipeError(
            f"max_length: {args.max_length} tokens are more than {arguments.model_name_or_path} takes, "
            f"{longest}; pass --max_length {longest} or less"
        )
    adapter = get_peft_config(arguments)
    if adapter is not None:
        adapter.revision = arguments.model_revision  # the revision of the base that the adapter belongs to
    trainer = RecipeSFTTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=adapter,
        exact_match=arguments.make_exact_match(),
    )
    _check_prepared(trainer)
    trainer.notes += [*notes, *_describe_lengths(trainer)]
    return trainer


def _check_fields(arguments: Arguments, args: RecipeSFTConfig) -> None:
    """Checks that the task's fields and those of training fit each other.

    Raises:
        RecipeError: two fields do not.
    """
    if arguments.answer_pattern is not None:
        if args.packing if args.eval_packing is None else args.eval_packing:
            raise RecipeError("answer_pattern: prompts must not be packed; add eval_packing: false")
        if args.completion_only_loss is False:
            raise RecipeError(
                "answer_pattern: prompts must be told from completions; add completion_only_loss: true"
            )
    elif (args.metric_for_best_model or "").removeprefix("eval_") == "exact_match":
        raise RecipeError("metric_for_best_model: exact_match needs answer_pattern, to know the answer")
    if args.loraplus_lr_ratio is not None and not arguments.use_peft:
        raise RecipeError("loraplus_lr_ratio: needs LoRA; add use_peft: true")
    if args.max_length is not None and args.max_length < 2:
        raise RecipeError(f"max_length: {args.max_length} tokens leave none to predict; pass at least 2")
    if args.padding_free and not args.packing:
        raise RecipeError("padding_free: needs packed examples; add packing: true")


def _check_prepared(trainer: RecipeSFTTrainer) -> None:
    """Checks that `max_length` leaves examples in both splits, and that the pattern finds an answer.

    Raises:
        RecipeError: a split has no example left, or no answer is found in time.
    """
    for field, data in (("train_split", trainer.train_dataset), ("eval_split", trainer.eval_dataset)):
        if not len(data):
            raise RecipeError(
                f"{field}: no example has a completion within max_length ({trainer.args.max_length} tokens); "
                "raise --max_length"
            )
    if (asked := trainer.exact_match) is not None:
        completions = [trainer.read_reference(row) for row in trainer.asked]
        try:
            found = any(asked.find_answer(text) for text in completions)
        except TimeoutError:
            raise RecipeError(
                f"answer_pattern: {asked.pattern!r} takes more than {SECONDS:g} s to find an answer "
                "in one of the first completions of eval_split; write it without repeats of repeats"
            ) from None
        if not found:
            raise RecipeError(
                f"answer_pattern: {asked.pattern!r} is in none of the first {len(completions)} completions "
                f"of eval_split, such as {completions[0][-80:]!r}; to do without: --answer_pattern none"
            )


def _describe_lengths(trainer: RecipeSFTTrainer) -> list[str]:
    """Describes, in a line each, how `max_length` and packing changed the splits."""
    notes = []
    for name, counts in trainer.truncated.items():
        if counts["dropped"] or counts["shortened"]:
            rest = "; perplexity is over what is left" if name == "eval" else ""
            notes.append(
                f"{name}_split: of {counts['examples']:,} examples, max_length ({trainer.args.max_length} "
                f"tokens) leaves {counts['dropped']:,} out and cuts {counts['shortened']:,} short{rest}"
            )
    if trainer.args.packing and "train" in trainer.truncated:
        left = trainer.truncated["train"]["examples"] - trainer.truncated["train"]["dropped"]
        notes.append(
            f"train_split: {left:,} examples are packed into {len(trainer.train_dataset):,} sequences"
        )
    if trainer.exact_match is not None:
        asked = len(trainer.asked)
        if without := asked - len(trainer.find_fitting(range(asked))):
            notes.append(
                "exact_match: counted as not matched, since their prompts leave no room within max_length: "
                f"{without:,} of the first {asked:,} examples of eval_split"
            )
    return notes
