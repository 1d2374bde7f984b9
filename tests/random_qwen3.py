"""A tiny Qwen3 of random weights with a tokenizer of words, as transformers writes both."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

WORDS = "a the dog barks rain falls twice in and bell rings tone steady it is raining steadily".split()


def save_random_qwen3(folder: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
        intermediate_size=20, rope_parameters={"rope_theta": 100.0, "rope_type": "default"}, initializer_range=0.3,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    for name, weight in model.named_parameters():
        if "norm" in name:  # at 1, a norm that is left out or taken for another would not show
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<end>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>").save_pretrained(
        folder
    )
    return folder
