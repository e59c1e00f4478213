"""Write a vision-language model of 1 MB with random weights, without a network.

Its captions are gibberish in ASCII; requests, replies, streams and errors are those of the server
that runs it. The architecture is Idefics3, SmolVLM's family: transformers, vLLM and llama.cpp's
converter know it. It needs torch and transformers.

usage: python scripts/tiny_model.py FOLDER
"""

from __future__ import annotations

import string
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

EDGE, PATCH, SCALE = 56, 14, 2
CONTEXT = 2048
WORDS = """A red cat sits on a grey mat beside a blue bowl. A white cup stands on its saucer.
Stars shine in the dark sky above the hills. Two people walk along a beach at sunset."""
PAD, BEGIN, END, IMAGE = "<|pad|>", "<|begin|>", "<end_of_utterance>", "<image>"
SPECIAL = [
    *(PAD, BEGIN, END, IMAGE, "<fake_token_around_image>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]
TEMPLATE = """\
{% for message in messages %}{{ message['role'] | capitalize }}: \
{% if message['content'] is string %}{{ message['content'] }}\
{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}\
{% endfor %}{% endif %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows ASCII only, so that no caption has half a character."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    letters = string.ascii_letters + string.digits + string.punctuation
    # The byte-level alphabet writes a blank and a line's end as these letters.
    alphabet = [*letters, "Ġ", "Ċ"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    # llama.cpp's converter wants two line ends to be one token.
    bpe.train_from_iterator([f"{line}\n\n" for line in WORDS.splitlines()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        additional_special_tokens=SPECIAL[3:],
        chat_template=TEMPLATE,
    )


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.manual_seed(0)
    words = tokenizer()
    pad, begin, end, image = map(words.convert_tokens_to_ids, (PAD, BEGIN, END, IMAGE))
    width = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = Idefics3Config(
        vision_config={
            **width,
            "model_type": "idefics3_vision",
            "num_attention_heads": 2,
            "image_size": EDGE,
            "patch_size": PATCH,
        },
        text_config={
            **width,
            "model_type": "llama",
            "vocab_size": len(words),
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": CONTEXT,
            "pad_token_id": pad,
            "bos_token_id": begin,
            "eos_token_id": end,
            "tie_word_embeddings": False,
        },
        scale_factor=SCALE,
        image_token_id=image,
        pad_token_id=pad,
        tie_word_embeddings=False,
    )
    model = Idefics3ForConditionalGeneration(config).eval()
    # Random choices among many words: no caption repeats itself, and none is empty.
    never = [number for number in range(len(SPECIAL)) if number != end]
    model.generation_config.update(
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=pad,
        do_sample=True,
        max_new_tokens=24,
        min_new_tokens=8,
        suppress_tokens=never,
    )
    model.save_pretrained(sys.argv[1])
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": EDGE}, max_image_size={"longest_edge": EDGE}, do_image_splitting=False
    )
    Idefics3Processor(
        pictures, words, image_seq_len=(EDGE // PATCH) ** 2 // SCALE**2, chat_template=TEMPLATE
    ).save_pretrained(sys.argv[1])


if __name__ == "__main__":
    main()
