"""A training loop without the Trainer. It survives being killed at any moment.

accelerate launch accelerate_loop.py --model gpt2 --train_file text.jsonl --output_dir out
"""

import argparse
import math
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from adamnx_hf import AdamNX, param_groups


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a name on the Hub")
    parser.add_argument("--train_file", required=True, help='JSON lines with a column "text"')
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--save_steps", type=int, default=100)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def batches(args, accelerator):
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with accelerator.main_process_first():
        rows = load_dataset("json", data_files=args.train_file, split="train")
    if len(rows) < args.batch_size * accelerator.num_processes:
        raise ValueError(
            f"{args.train_file} has {len(rows)} rows: fewer than a batch of --batch_size {args.batch_size} "
            f"for each of {accelerator.num_processes} processes"
        )

    def collate(rows):
        texts = [row["text"] for row in rows]
        batch = tokenizer(
            texts, padding=True, truncation=True, max_length=args.max_length, return_tensors="pt"
        )
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}

    # A generator of its own: starting an epoch again, on resuming, then draws none of the model's random
    # numbers, and dropout goes on as if nothing had happened.
    return torch.utils.data.DataLoader(
        rows,
        args.batch_size,
        shuffle=True,
        collate_fn=collate,
        drop_last=True,
        generator=torch.Generator().manual_seed(args.seed),
    )


def save(accelerator, folder, step):
    """Under another name until it is complete: whatever is called step_... can be resumed from."""
    unfinished, finished = folder / f"unfinished_{step:08}", folder / f"step_{step:08}"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(unfinished)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unfinished.rename(finished)


def main(argv=None):
    args = parse(argv)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    set_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(args.model)
    groups = param_groups(model, weight_decay=0.01)
    optimizer = AdamNX(groups, lr=args.learning_rate)  # was: torch.optim.AdamW(groups, lr=args.learning_rate)
    # prepare() makes the scheduler go as many steps at a time as there are processes.
    steps = args.max_steps * accelerator.num_processes
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=steps // 20, num_training_steps=steps)
    model, optimizer, loader, scheduler = accelerator.prepare(
        model, optimizer, batches(args, accelerator), scheduler
    )

    args.output_dir.mkdir(parents=True, exist_ok=True)
    step = 0
    if checkpoints := sorted(args.output_dir.glob("step_*")):
        accelerator.load_state(checkpoints[-1])
        step = int(checkpoints[-1].name.removeprefix("step_"))
        accelerator.print(f"resumed from {checkpoints[-1]}")

    model.train()
    # Accelerate steps at the end of each epoch too, with however few batches have accumulated by then.
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    while step < args.max_steps:
        epoch, done = divmod(step, steps_per_epoch)
        loader.set_epoch(epoch)
        for batch in accelerator.skip_first_batches(loader, done * args.gradient_accumulation_steps):
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            step += 1
            accelerator.print(f"step {step}: loss {loss.item():.4f}")
            if step % args.save_steps == 0 or step == args.max_steps:
                save(accelerator, args.output_dir, step)
            if step == args.max_steps:
                break
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(model).save_pretrained(
        args.output_dir / "model",
        is_main_process=accelerator.is_main_process,
        state_dict=accelerator.get_state_dict(model),
    )
    accelerator.end_training()


if __name__ == "__main__":
    main()
