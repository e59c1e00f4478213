"""Caption the images of a data set. Run the script again to continue after an interruption."""

from __future__ import annotations

import os
from pathlib import Path

from captioner.dataflow import APIVLMServing_openai, FileStorage, PromptedVQAGenerator

HERE = Path(__file__).parent.parent


class ImageCaptionPipeline:
    """Reads records, sends their images to a model and writes the records with captions."""

    def __init__(self) -> None:
        self.storage = FileStorage(
            first_entry_file_name=str(HERE / "example_data/image_caption/sample_data.json"),
            cache_path=str(HERE / "cache_local"),
            file_name_prefix="caption",
            cache_type="json",
        )
        self.vlm_serving = APIVLMServing_openai(
            # "offline" is the built-in describer. Put the address of your endpoint here, such as
            # "http://localhost:8000/v1" or "https://api.openai.com/v1".
            api_url=os.environ.get("OPENAI_BASE_URL", "offline"),
            # The name of the environment variable that holds the key, not the key itself.
            key_name_of_api_key="DF_API_KEY",
            model_name=os.environ.get("MODEL", "captioner-offline"),
            max_workers=10,
            timeout=1800,
        )
        self.vqa_generator = PromptedVQAGenerator(
            serving=self.vlm_serving,
            system_prompt="You are an image caption generator. Write a concise and informative "
            "caption of the given image.",
        )

    def forward(self) -> None:
        """Caption every record."""
        self.vqa_generator.run(
            storage=self.storage.step(),
            input_conversation_key="conversation",
            input_image_key="image",
            output_answer_key="caption",
        )


if __name__ == "__main__":
    ImageCaptionPipeline().forward()
