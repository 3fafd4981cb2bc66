"""Fine-tunes a language model with TRL's SFTTrainer and a LoRA adapter of PEFT.

accelerate launch sft_lora.py --model_name_or_path Qwen/Qwen3-0.6B --dataset_name trl-lib/Capybara
"""

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser, get_peft_config

import adamnx_hf  # noqa: F401 - makes the name known


def main(args=None):
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig))
    parser.set_defaults(
        optim="adamnx",  # was: "adamw_torch_fused"
        learning_rate=2e-4,
        use_peft=True,
    )
    script, training, model = parser.parse_args_and_config(args)
    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=load_dataset(script.dataset_name)[script.dataset_train_split],
        peft_config=get_peft_config(model),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
