"""Continues a causal language model's pre-training with the Trainer; goes on where it was interrupted.

accelerate launch trainer.py --model gpt2 --train_file text.jsonl --output_dir out --max_steps 1000
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

import adamnx_hf  # noqa: F401 - makes the name known
from trainer_patches import last_complete_checkpoint


@dataclass
class Arguments(TrainingArguments):
    """TrainingArguments and what to train on."""

    optim: str = "adamnx"  # was: "adamw_torch_fused"
    model: str = field(default=None, metadata={"help": "a folder or a name on the Hub"})
    train_file: str = field(default=None, metadata={"help": 'JSON lines with a column "text"'})
    max_length: int = field(default=512, metadata={"help": "tokens of an example"})


def main(args=None):
    parser = HfArgumentParser(Arguments)
    (args,) = parser.parse_args_into_dataclasses(args)
    # A field after TrainingArguments' needs a default, so the parser does not ask for these itself.
    if missing := [f"--{name}" for name in ("model", "train_file") if getattr(args, name) is None]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = load_dataset("json", data_files=args.train_file, split="train")
    rows = rows.map(
        lambda row: tokenizer(row["text"], truncation=True, max_length=args.max_length),
        remove_columns=rows.column_names,
    )
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(args.model),
        args=args,
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    trainer.save_model()


if __name__ == "__main__":
    main()
