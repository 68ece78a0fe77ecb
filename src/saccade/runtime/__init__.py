"""Running fixed graphs fast: exact tiles (`tiles`), exported graphs (`graphs`), and the engines that run them.

Nothing here imports torch at module import: where OpenVINO or ONNX Runtime serves, torch is never loaded.
"""
