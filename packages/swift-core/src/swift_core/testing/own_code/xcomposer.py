"""Stand-in for the repository of InternLM-XComposer 2.5: names, signatures and placeholders as published, with other insides."""

CONFIGURATION = """
from transformers import LlamaConfig
class InternLMXcomposer2Config(LlamaConfig):
    model_type = "internlmxcomposer2"
"""

UTILS = """
def Image_transform(img, hd_num=25):
    wide = img.width > img.height and hd_num > 1
    return img.resize((1120 if wide else 560, 560))
"""

MODELING = """
import torch
from torch import nn
from transformers import LlamaModel, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from .configuration_internlm_xcomposer2 import InternLMXcomposer2Config
from .ixc_utils import Image_transform
class InternLM2Model(LlamaModel):
    config_class = InternLMXcomposer2Config
    def __init__(self, config):
        super().__init__(config)
        self.tok_embeddings = self.embed_tokens
        del self.embed_tokens
        self.seen = nn.Linear(config.hidden_size, config.hidden_size)
    def get_input_embeddings(self):
        return self.tok_embeddings
    def forward(self, input_ids=None, inputs_embeds=None, im_mask=None, infer_mode="base", **kwargs):
        if inputs_embeds is None:
            inputs_embeds = self.tok_embeddings(input_ids)
        elif im_mask is not None:
            inputs_embeds = inputs_embeds + im_mask[..., None] * self.seen(inputs_embeds)
        return super().forward(inputs_embeds=inputs_embeds, **kwargs)
class VisionTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 28, 28)
    def forward(self, images, glb_GN, sub_GN):
        assert len(images) == 1
        rows, columns = images[0].shape[-2] // 560, images[0].shape[-1] // 560
        count = (rows * columns + 1) * 400 + 1 + (rows + 1) * 20
        grid = self.patches(images[0]).flatten(2)
        return nn.functional.interpolate(grid, count).transpose(1, 2) + glb_GN + sub_GN[0], [count]
class InternLMXComposer2ForCausalLM(PreTrainedModel):
    config_class = InternLMXcomposer2Config
    base_model_prefix = "model"
    def __init__(self, config):
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tokenizer = None
        self.plora_glb_GN, self.plora_sub_GN = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 1, 1, 8))
        self.vit, self.vision_proj = VisionTower(), nn.Linear(8, config.hidden_size)
        self.post_init()
    def _init_weights(self, module):
        return
    def get_input_embeddings(self):
        return self.model.tok_embeddings
    def get_output_embeddings(self):
        return self.output
    def encode_img(self, image, hd_num=25):
        assert isinstance(image, torch.Tensor)
        embeds, split = self.vit([image], self.plora_glb_GN, self.plora_sub_GN)
        assert len(split) == 1
        return self.vision_proj(embeds)
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, labels=None,
                use_cache=None, output_attentions=None, output_hidden_states=None, return_dict=None, **kwargs):
        assert not kwargs.get("samples")
        im_mask, infer_mode = kwargs.get("im_mask", None), kwargs.get("infer_mode", "base")
        if im_mask is None and inputs_embeds is not None:
            im_mask = torch.zeros(inputs_embeds.shape[:2]).bool()
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, im_mask=im_mask,
                             past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache, infer_mode=infer_mode)
        return CausalLMOutputWithPast(logits=self.output(outputs[0]).float(), past_key_values=outputs.past_key_values)
    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, im_mask=None,
                                      infer_mode="base", **kwargs):
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        inputs = {"inputs_embeds": inputs_embeds} if inputs_embeds is not None and first else {"input_ids": input_ids[:, -1:]}
        if inputs_embeds is None and first:
            inputs = {"input_ids": input_ids}
        return {**inputs, "past_key_values": past_key_values, "use_cache": kwargs.get("use_cache"), "attention_mask": attention_mask,
                "im_mask": im_mask if first else None, "infer_mode": infer_mode}
"""
