"""Stand-in for the repository of GLM-4V 9B: names, signatures and placeholders as published, tiny, with other insides."""

CONFIGURATION = """
from transformers import PretrainedConfig
class ChatGLMConfig(PretrainedConfig):
    model_type = "chatglm"
    def __init__(self, padded_vocab_size=512, hidden_size=16, num_layers=2, vision_config=None, boi_token_id=None, eoi_token_id=None,
                 seq_length=512, **kwargs):
        self.padded_vocab_size = self.vocab_size = padded_vocab_size
        self.hidden_size, self.num_layers, self.num_hidden_layers = hidden_size, num_layers, num_layers
        self.vision_config, self.boi_token_id, self.eoi_token_id, self.seq_length = vision_config, boi_token_id, eoi_token_id, seq_length
        super().__init__(**kwargs)
"""

MODELING = """
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from .configuration_chatglm import ChatGLMConfig
def is_empty(images_list):
    return images_list is None or len(images_list) == 0 or all(images is None for images in images_list)
def patches_of(config):
    return (config.vision_config["image_size"] // config.vision_config["patch_size"] // 2) ** 2
class Embedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)
    def forward(self, input_ids):
        return self.word_embeddings(input_ids)
class EVA2CLIPModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        edge = 2 * config.vision_config["patch_size"]
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, edge, edge)
        self.boi, self.eoi = (nn.Parameter(torch.zeros(1, 1, config.hidden_size)) for _ in range(2))
    def forward(self, images):
        x = self.patch_embedding(images).flatten(2).transpose(1, 2)
        return torch.cat([self.boi.expand(len(x), -1, -1), x, self.eoi.expand(len(x), -1, -1)], dim=1)
class ChatGLMPreTrainedModel(PreTrainedModel):
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    def _init_weights(self, module):
        return
    def get_position_ids(self, input_ids, device):
        return torch.arange(input_ids.shape[1], device=device)[None].repeat(len(input_ids), 1)
class ChatGLMModel(ChatGLMPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embedding = Embedding(config)
        self.encoder = LlamaModel(LlamaConfig(vocab_size=2, hidden_size=config.hidden_size, intermediate_size=32,
            num_hidden_layers=config.num_layers, num_attention_heads=2, attn_implementation="sdpa"))
        self.encoder.embed_tokens = None
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.vision = EVA2CLIPModel(config)
        self.post_init()
    def get_input_embeddings(self):
        return self.embedding.word_embeddings
    def forward(self, input_ids=None, images=None, position_ids=None, attention_mask=None, full_attention_mask=None, past_key_values=None,
                inputs_embeds=None, use_cache=None, output_hidden_states=None, return_dict=None):
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        if first:
            assert input_ids is not None and inputs_embeds is None, f"{input_ids} {inputs_embeds}"
            if not is_empty(images):
                count = patches_of(self.config)
                assert len(input_ids) == len(images), f"{len(input_ids)} {len(images)}"
                inputs_embeds, features = self.embedding(input_ids), self.vision(images)
                if position_ids is None:
                    position_ids = self.get_position_ids(input_ids, device=inputs_embeds.device)
                embeds, places = [], []
                for i in range(len(input_ids)):
                    ids = input_ids[i].tolist()
                    boi, eoi = ids.index(self.config.boi_token_id), ids.index(self.config.eoi_token_id)
                    assert eoi - boi == 2
                    embeds.append(torch.cat((inputs_embeds[i, :boi], features[i], inputs_embeds[i, eoi + 1 :])))
                    middle = position_ids[i, boi + 1].repeat(count)
                    places.append(torch.cat((position_ids[i, : boi + 1], middle, position_ids[i, eoi:])))
                inputs_embeds, position_ids = torch.stack(embeds), torch.stack(places)
        if inputs_embeds is None:
            inputs_embeds = self.embedding(input_ids)
        output = self.encoder(inputs_embeds=inputs_embeds, position_ids=position_ids, attention_mask=attention_mask,
                              past_key_values=past_key_values, use_cache=use_cache)
        return BaseModelOutputWithPast(last_hidden_state=output.last_hidden_state, past_key_values=output.past_key_values)
class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel):
    def __init__(self, config, empty_init=True, device=None):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()
    def get_input_embeddings(self):
        return self.transformer.embedding.word_embeddings
    def get_output_embeddings(self):
        return self.transformer.output_layer
    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, is_encoder_decoder=False, **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder, **kwargs)
        return {**model_kwargs, "is_first_forward": False}
    def prepare_inputs_for_generation(self, input_ids, images=None, past_key_values=None, attention_mask=None, position_ids=None,
                                      use_cache=None, is_first_forward=True, **kwargs):
        position_ids = self.get_position_ids(input_ids, device=input_ids.device)
        if attention_mask is not None and not is_empty(images):
            masks = []
            for i in range(len(input_ids)):
                ids = input_ids[i].tolist()
                boi, eoi = ids.index(self.config.boi_token_id), ids.index(self.config.eoi_token_id)
                assert eoi - boi == 2
                more = attention_mask.new_ones(patches_of(self.config))
                masks.append(torch.cat((attention_mask[i, : boi + 1], more, attention_mask[i, eoi:])))
            attention_mask = torch.stack(masks)
        if not is_first_forward and past_key_values is not None:
            position_ids, input_ids = position_ids[..., -1:], input_ids[:, -1:]
        return {"input_ids": input_ids, "images": images, "past_key_values": past_key_values, "position_ids": position_ids,
                "attention_mask": attention_mask, "return_last_logit": True, "use_cache": use_cache}
    def forward(self, input_ids=None, images=None, position_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None,
                labels=None, use_cache=None, output_attentions=None, output_hidden_states=None, return_dict=None, return_last_logit=False):
        outputs = self.transformer(input_ids=input_ids, images=images, position_ids=position_ids, attention_mask=attention_mask,
                                   past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache)
        hidden = outputs[0][:, -1:] if return_last_logit else outputs[0]
        return CausalLMOutputWithPast(logits=self.transformer.output_layer(hidden), past_key_values=outputs.past_key_values)
"""
