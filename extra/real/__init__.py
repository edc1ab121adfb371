"""FusionRoute with real models and data of your own. See README.md here.

    from extra.real import load
    model = load("DIR")                # a Llama or a Gemma-2 in the format of Hugging Face
    logits, hidden = model(ids)        # ids (B, T) -> (B, T, V), (B, T, d)
"""

from extra.real.pretrained import load, save

__all__ = ["load", "save"]
