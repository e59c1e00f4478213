"""Convert the model of tiny_model.py, and its projector of images, to llama.cpp's GGUF.

It runs llama.cpp's converter, which needs torch and transformers.

usage: python scripts/tiny_gguf.py LLAMA_CPP MODEL FOLDER
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import tempfile
from pathlib import Path


def main() -> None:
    source, model, folder = map(Path, sys.argv[1:])
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / model.name
        shutil.copytree(model, copy)
        as_the_converter_reads_it(copy)
        accept_any_tokenizer()
        for output, more in (("tiny.gguf", ()), ("mmproj.gguf", ("--mmproj",))):
            sys.argv = ["", str(copy), "--outtype", "f32", "--outfile", str(folder / output), *more]
            try:
                runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")
            except SystemExit as end:
                if end.code:
                    raise


def as_the_converter_reads_it(model: Path) -> None:
    """Name the class of the text model, and write the image processor's file of its own."""
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["architectures"] = ["LlamaForCausalLM"]
    (model / "config.json").write_text(json.dumps(config))
    processor = json.loads((model / "processor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps(processor["image_processor"]))


def accept_any_tokenizer() -> None:
    """Let the converter take a tokenizer that it does not know for GPT-2's kind."""
    import conversion.base  # type: ignore[import-not-found]

    for kind in vars(conversion.base).values():
        if isinstance(kind, type) and "get_vocab_base_pre" in vars(kind):
            kind.get_vocab_base_pre = lambda *_: "gpt-2"  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
