"""DataFlow-MM's image captioning on captioner's engine: change only the imports of a script.

::

    from captioner.dataflow import (
        APIVLMServing_openai, FileStorage, LLMServingABC, PromptedVQAGenerator,
    )

The names, arguments and file names are those of DataFlow-MM
(https://github.com/OpenDCAI/DataFlow-MM). The differences: a second run continues the first.
A record that cannot be captioned has no answer, never the text of an error, and is listed in a
failures file beside the result. No record is sent without its image.
"""

from captioner.dataflow.generator import PromptedVQAGenerator
from captioner.dataflow.serving import OFFLINE, APIVLMServing_openai, LLMServingABC
from captioner.dataflow.storage import CacheType, FileStorage

__all__ = [
    "OFFLINE",
    "APIVLMServing_openai",
    "CacheType",
    "FileStorage",
    "LLMServingABC",
    "PromptedVQAGenerator",
]
