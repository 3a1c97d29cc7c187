"""Stand-in for the repository of Phi-3.5-vision: names, signatures and placeholders as published, tiny, with other insides."""

CONFIGURATION = """
from transformers import LlamaConfig
class Phi3VConfig(LlamaConfig):
    model_type = "phi3_v"
"""

MODELING = """
import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from .configuration_phi3_v import Phi3VConfig
class Phi3ImageEmbedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.img_processor = nn.Conv2d(3, 8, 14, 14)
        self.img_projection = nn.Linear(8, config.hidden_size)
    def forward(self, input_ids, wte, pixel_values, image_sizes):
        embeds = wte(input_ids.clamp_min(0))
        if pixel_values is None or not len(pixel_values):
            return embeds
        features = [self.img_projection(self.img_processor(crops).flatten(2).transpose(1, 2).flatten(0, 1)) for crops in pixel_values]
        assert len(features) == len(image_sizes)
        places = (input_ids < 0).nonzero(as_tuple=True)
        return embeds.index_put(places, torch.cat(features))
class Phi3VModel(LlamaModel):
    config_class = Phi3VConfig
    def __init__(self, config):
        super().__init__(config)
        self.vision_embed_tokens = Phi3ImageEmbedding(config)
    def forward(self, input_ids=None, inputs_embeds=None, pixel_values=None, image_sizes=None, **kwargs):
        if inputs_embeds is None:
            inputs_embeds = self.vision_embed_tokens(input_ids, self.embed_tokens, pixel_values, image_sizes)
        return super().forward(inputs_embeds=inputs_embeds, **kwargs)
class Phi3VForCausalLM(LlamaForCausalLM):
    config_class = Phi3VConfig
    def __init__(self, config):
        super(LlamaForCausalLM, self).__init__(config)
        self.model, self.vocab_size = Phi3VModel(config), config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, pixel_values=None,
                image_sizes=None, labels=None, use_cache=None, output_attentions=None, output_hidden_states=None, return_dict=None):
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache,
                             past_key_values=past_key_values, inputs_embeds=inputs_embeds, pixel_values=pixel_values,
                             image_sizes=image_sizes)
        return CausalLMOutputWithPast(logits=self.lm_head(outputs[0]), past_key_values=outputs.past_key_values)
    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, pixel_values=None,
                                      image_sizes=None, **kwargs):
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        ids = input_ids if first else input_ids[:, -1:]
        return {"input_ids": ids, "past_key_values": past_key_values, "attention_mask": attention_mask,
                "use_cache": kwargs.get("use_cache"), "pixel_values": pixel_values if first else None, "image_sizes": image_sizes}
"""

PROCESSING = """
import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ProcessorMixin
class Phi3VImageProcessor(BaseImageProcessor):
    model_input_names = ["pixel_values"]
    def __init__(self, num_crops=2, num_img_tokens=4, **kwargs):
        super().__init__(**kwargs)
        self.num_crops, self.num_img_tokens = num_crops, num_img_tokens
    def preprocess(self, images, return_tensors=None, **kwargs):
        pixels = []
        for image in images:
            values = torch.tensor(np.asarray(image.convert("RGB").resize((56, 28)), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
            pixels.append(torch.stack([values[:, :, :28], values[:, :, 28:]]))
        data = {"pixel_values": torch.stack(pixels), "image_sizes": torch.tensor([[28, 56]] * len(images))}
        return BatchFeature(data={**data, "num_img_tokens": [2 * self.num_img_tokens] * len(images)})
    def __call__(self, images, **kwargs):
        return self.preprocess(images, **kwargs)
class Phi3VProcessor(ProcessorMixin):
    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"
    def __init__(self, image_processor=None, tokenizer=None):
        super().__init__(image_processor, tokenizer)
"""
