"""Dictionaries in the files of other libraries.

SAELens (``cfg.json`` and ``sae_weights.safetensors``) and sparsify (``cfg.json`` and ``sae.safetensors``), both ways,
for the architectures that both sides have. Nothing of either library is needed, and nothing in a file is executed.
"""

from fastsae.formats.saelens import load_saelens, save_saelens
from fastsae.formats.sparsify import load_sparsify, save_sparsify

__all__ = ["load_saelens", "load_sparsify", "save_saelens", "save_sparsify"]
