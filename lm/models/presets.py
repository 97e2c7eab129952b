"""Published shapes of the one stack: take one and `dataclasses.replace` what differs."""

from dataclasses import replace

from lm.models.transformer import Transformer

# Radford et al. 2018, https://github.com/openai/finetune-transformer-lm: post-norm, no norm at the end.
GPT1 = Transformer(vocab=40478, context=512, width=768, depth=12, heads=12, placement="post", init_scale_depth=False)

# Radford et al. 2019, https://github.com/openai/gpt-2. 50,257 symbols; pad_vocab=128 suits accelerators and meshes.
GPT2_SMALL = Transformer(vocab=50257, context=1024, width=768, depth=12, heads=12)
GPT2_MEDIUM = replace(GPT2_SMALL, width=1024, depth=24, heads=16)
GPT2_LARGE = replace(GPT2_SMALL, width=1280, depth=36, heads=20)
GPT2_XL = replace(GPT2_SMALL, width=1600, depth=48, heads=25)
