"""Stand-in for Yi-VL, with its code in the folder: names, signatures and placeholders as published, tiny, with other insides."""

CONFIGURATION = """
from transformers import LlamaConfig
class LlavaConfig(LlamaConfig):
    model_type = "llava"
"""

MODELING = """
import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel
from .configuration_llava import LlavaConfig
IMAGE_TOKEN_INDEX = -200
class CLIPVisionTower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patches = nn.Conv2d(3, config.mm_hidden_size, 14, 14)
    def forward(self, images):
        return self.patches(images).flatten(2).transpose(1, 2)
class LlavaLlamaModel(LlamaModel):
    config_class = LlavaConfig
    def __init__(self, config):
        super().__init__(config)
        self.vision_tower = CLIPVisionTower(config)
        self.mm_projector = nn.Linear(config.mm_hidden_size, config.hidden_size)
    def get_vision_tower(self):
        return self.vision_tower
class LlavaLlamaForCausalLM(LlamaForCausalLM):
    config_class = LlavaConfig
    def __init__(self, config):
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
    def get_model(self):
        return self.model
    def encode_images(self, images):
        return self.get_model().mm_projector(self.get_model().get_vision_tower()(images))
    def prepare_inputs_labels_for_multimodal(self, input_ids, attention_mask, past_key_values, labels, images):
        if images is None or input_ids.shape[1] == 1:
            if past_key_values is not None and images is not None and input_ids.shape[1] == 1:
                attention_mask = torch.ones((len(input_ids), past_key_values.get_seq_length() + 1))
            return input_ids, attention_mask, past_key_values, None, labels
        features = self.encode_images(images)
        rows, taken = [], 0
        for ids in input_ids:
            pieces = []
            while (ids == IMAGE_TOKEN_INDEX).any():
                at = torch.where(ids == IMAGE_TOKEN_INDEX)[0][0]
                pieces += [self.get_model().embed_tokens(ids[:at]), features[taken]]
                ids, taken = ids[at + 1 :], taken + 1
            rows.append(torch.cat([*pieces, self.get_model().embed_tokens(ids)]))
        embeds = torch.stack(rows)
        return None, torch.ones(embeds.shape[:2]), past_key_values, embeds, labels
    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None, labels=None, use_cache=None,
                output_attentions=None, output_hidden_states=None, images=None, return_dict=None):
        input_ids, attention_mask, past_key_values, inputs_embeds, labels = self.prepare_inputs_labels_for_multimodal(
            input_ids, attention_mask, past_key_values, labels, images
        )
        if attention_mask is None:  # transformers 5 leaves out a mask of ones
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            attention_mask = torch.ones((1, past + 1 if past else input_ids.shape[1]))
        position_ids = attention_mask.long().cumsum(-1) - 1
        if past_key_values is not None and past_key_values.get_seq_length():
            position_ids = position_ids[:, -1].unsqueeze(-1)
        from transformers.modeling_outputs import CausalLMOutputWithPast
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache,
                             past_key_values=past_key_values, inputs_embeds=inputs_embeds)
        return CausalLMOutputWithPast(logits=self.lm_head(outputs[0]), past_key_values=outputs.past_key_values)
    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, **kwargs):
        if past_key_values is not None and past_key_values.get_seq_length():
            input_ids = input_ids[:, -1:]
        return {"input_ids": input_ids, "past_key_values": past_key_values, "use_cache": kwargs.get("use_cache"),
                "attention_mask": attention_mask, "images": kwargs.get("images", None)}
"""
