"""The endpoint behind ``--offline`` and ``captioner serve``: a describer, not a model.

It speaks the OpenAI chat completions protocol over real HTTP and says about each image only what
it measures: shape and size, main colours, brightness, sharpness, and the text that OCR can read.
It is for trying the engine without a GPU or a key, and for images that are mostly text. It does
not recognise objects, people or scenes, and it does not read the prompt.
"""
