"""Stable Diffusion v1 in miniature, trained on drawn shapes: something to see in a minute.

- `captions`: the 240 sentences, 32 of which are never trained on;
- `drawing`: pictures of them; `reading`: the rule that reads a sentence off a picture;
- `networks`: the topology of SD v1, block for block, at small width;
- `training`: the autoencoder first, then UNet and text encoder on its latents;
- ``python -m sd1_impl.toy`` trains, judges and writes ``sd1_weights/toy.safetensors``.
"""
