"""The endpoint behind ``--offline`` and ``captioner serve``: a demo, not a vision-language model.

It speaks the OpenAI chat completions protocol and describes an image by its size, colours, light,
sharpness and legible text. It recognises no objects and does not read the prompt.
"""
